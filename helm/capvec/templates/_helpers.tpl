{{/* Names and labels. */}}

{{- define "capvec.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 52 characters at most: a StatefulSet's pods carry it as a label with a revision of 11 characters behind it. Without
dots, which a release's name may have and a Service's may not. */}}
{{- define "capvec.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | replace "." "-" | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* The name that the pod of `helm test` has among its labels. Not the workers': the workload and its disruption budget must
not take this pod for one of them. */}}
{{- define "capvec.checkName" -}}
{{- include "capvec.name" . | trunc 57 -}}-check
{{- end -}}

{{/* What selects the pods. It can't be changed once a workload exists. */}}
{{- define "capvec.selectorLabels" -}}
app.kubernetes.io/name: {{ include "capvec.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "capvec.labels" -}}
{{- include "capvec.labelsWith" (dict "root" . "own" dict) -}}
{{- end -}}

{{/* The labels of an object that has some of its `own`. One map, so that no key comes twice: of two that meet, the one that
selects counts, then the object's own. */}}
{{- define "capvec.labelsWith" -}}
{{- $selector := include "capvec.selectorLabels" .root | fromYaml -}}
{{- $usual := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/managed-by" .root.Release.Service "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- toYaml (merge $selector (default dict .own) (default dict .root.Values.commonLabels) $usual) -}}
{{- end -}}

{{- define "capvec.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "capvec.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "capvec.image" -}}
{{- $tag := default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" (default false .Values.gpu.enabled))) .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/* "true" where the pods need names that last: for a static member of the group, and for a transactional id. */}}
{{- define "capvec.stateful" -}}
{{- if or .Values.kafka.staticMembership (eq (include "capvec.deliveryMode" .) "exactly-once") -}}true{{- end -}}
{{- end -}}

{{- define "capvec.deliveryMode" -}}
{{- dig "delivery" "mode" "at-least-once" .Values.config -}}
{{- end -}}

{{- define "capvec.workloadKind" -}}
{{- ternary "StatefulSet" "Deployment" (eq (include "capvec.stateful" .) "true") -}}
{{- end -}}

{{/* Pods more and fewer than wanted during a rollout; with GPUs one goes before another comes. As text, so that a 0 counts as
given; null is as if nothing were. */}}
{{- define "capvec.maxSurge" -}}
{{- default (ternary "0" "1" (default false .Values.gpu.enabled)) (kindIs "invalid" .Values.rollout.maxSurge | ternary "" (toString .Values.rollout.maxSurge)) -}}
{{- end -}}

{{- define "capvec.maxUnavailable" -}}
{{- default (ternary "1" "0" (default false .Values.gpu.enabled)) (kindIs "invalid" .Values.rollout.maxUnavailable | ternary "" (toString .Values.rollout.maxUnavailable)) -}}
{{- end -}}

{{/* Milliseconds of a duration such as "1m 30s" or "1500ms". */}}
{{- define "capvec.milliseconds" -}}
{{- $ms := 0 -}}
{{- range regexFindAll "[0-9]+[a-z]+" . -1 -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $factor := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit -}}
{{- $ms = add $ms (mul $number (default 0 $factor)) -}}
{{- end -}}
{{- $ms -}}
{{- end -}}

{{/* The least that a pod needs to stop, in seconds: the drain, rounded up, 10 s at most to leave the group, and 5 s to spare. */}}
{{- define "capvec.gracePeriodMin" -}}
{{- $drain := dig "delivery" "drain_timeout" "30s" .Values.config -}}
{{- $ms := include "capvec.milliseconds" $drain | int64 -}}
{{- add (div (add $ms 999) 1000) 15 -}}
{{- end -}}

{{- define "capvec.gracePeriod" -}}
{{- if int64 .Values.terminationGracePeriodSeconds -}}
{{- int64 .Values.terminationGracePeriodSeconds -}}
{{- else -}}
{{- include "capvec.gracePeriodMin" . -}}
{{- end -}}
{{- end -}}

{{/* The port of admin.listen. */}}
{{- define "capvec.adminPort" -}}
{{- regexFind "[0-9]+$" (dig "admin" "listen" "0.0.0.0:9180" .Values.config) -}}
{{- end -}}

{{/* The package's folder as the worker sees it. */}}
{{- define "capvec.package" -}}
{{- if eq .Values.model.source "image" -}}
{{- .Values.model.image.path -}}
{{- else -}}
{{- $path := "" -}}
{{- if eq .Values.model.source "pvc" }}{{ $path = .Values.model.pvc.path }}{{ end -}}
{{- if eq .Values.model.source "imageVolume" }}{{ $path = .Values.model.imageVolume.path }}{{ end -}}
{{- list "/models/package" $path | compact | join "/" -}}
{{- end -}}
{{- end -}}

{{/* Most workers that can have work: maxReplicas, or as many as there are partitions. */}}
{{- define "capvec.maxReplicas" -}}
{{- default (int64 .Values.autoscaling.partitions) (int64 .Values.autoscaling.maxReplicas) -}}
{{- end -}}

{{/* A file that the chart carries from the repository's dashboards/. */}}
{{- define "capvec.file" -}}
{{- $text := .root.Files.Get (printf "files/%s" .name) -}}
{{- if not $text }}{{ fail (printf "files/%s isn't in this chart" .name) }}{{ end -}}
{{- $text -}}
{{- end -}}
