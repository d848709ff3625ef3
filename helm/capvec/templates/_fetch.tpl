{{/* The init container that fetches a model package; the work is files/fetch-model.sh. */}}

{{/* What the files are below, without a slash at the end. */}}
{{- define "capvec.fetchUrl" -}}
{{- with .Values.model.fetch -}}
{{- if eq .from "http" -}}
{{- default "" .http.url | trimSuffix "/" -}}
{{- else if eq .from "huggingface" -}}
{{- list .huggingface.endpoint .huggingface.repository "resolve" .huggingface.revision .huggingface.path | compact | join "/" | trimSuffix "/" -}}
{{- else if eq .from "s3" -}}
{{- /* Not https://<bucket>.s3… for a bucket with dots: the certificate's * stands for one label. */ -}}
{{- $aws := ternary (printf "https://s3.%s.amazonaws.com/%s" .s3.region .s3.bucket) (printf "https://%s.s3.%s.amazonaws.com" .s3.bucket .s3.region) (default "" .s3.bucket | contains ".") -}}
{{- $base := ternary (printf "%s/%s" (default "" .s3.endpoint | trimSuffix "/") .s3.bucket) $aws (not (empty .s3.endpoint)) -}}
{{- list $base (default "" .s3.prefix | trimAll "/") | compact | join "/" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The port of the address that is fetched from: the one that is written, or that of its scheme. */}}
{{- define "capvec.fetchPort" -}}
{{- $url := include "capvec.fetchUrl" . -}}
{{- with .Values.model.fetch -}}
{{- if eq .from "oci" }}{{ $url = printf "%s://%s" (ternary "http" "https" (default false .oci.plainHttp)) .oci.reference }}{{ end -}}
{{- end -}}
{{- $server := regexFind "^[a-z]+://[^/]+" $url -}}
{{- regexFind ":[0-9]+$" $server | trimPrefix ":" | default (hasPrefix "https:" $server | ternary "443" "80") -}}
{{- end -}}

{{- define "capvec.fetchContainer" -}}
{{- $fetch := .Values.model.fetch -}}
{{- $image := ternary "ghcr.io/oras-project/oras:v1.2.0" "docker.io/curlimages/curl:8.10.1" (eq $fetch.from "oci") -}}
image: {{ default $image $fetch.image | quote }}
{{- with $fetch.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
command: [sh, /etc/capvec-fetch/fetch-model.sh]
env:
  - {name: FETCH_FROM, value: {{ $fetch.from | quote }}}
  - {name: FETCH_SUMS, value: /etc/capvec-fetch/SHA256SUMS}
  - {name: FETCH_TARGET, value: /models/package}
  {{- if eq $fetch.from "oci" }}
  - {name: FETCH_REFERENCE, value: {{ $fetch.oci.reference | quote }}}
  - {name: FETCH_PLAIN_HTTP, value: {{ $fetch.oci.plainHttp | default false | quote }}}
  {{- else }}
  - {name: FETCH_URL, value: {{ include "capvec.fetchUrl" . | quote }}}
  {{- end }}
  {{- if eq $fetch.from "s3" }}
  - {name: FETCH_REGION, value: {{ $fetch.s3.region | quote }}}
  {{- end }}
  {{- if $fetch.existingSecret }}
  {{- $wanted := get (dict "http" (dict "FETCH_AUTHORIZATION" $fetch.keys.authorization) "huggingface" (dict "FETCH_TOKEN" $fetch.keys.token) "s3" (dict "FETCH_ACCESS_KEY_ID" $fetch.keys.accessKeyId "FETCH_SECRET_ACCESS_KEY" $fetch.keys.secretAccessKey "FETCH_SESSION_TOKEN" $fetch.keys.sessionToken) "oci" (dict)) $fetch.from }}
  {{- range $variable, $key := $wanted }}
  {{- if $key }}
  - name: {{ $variable }}
    valueFrom:
      secretKeyRef: {name: {{ $fetch.existingSecret | quote }}, key: {{ $key | quote }}}
  {{- end }}
  {{- end }}
  {{- if eq $fetch.from "oci" }}
  - {name: DOCKER_CONFIG, value: /etc/capvec-registry}
  {{- end }}
  {{- end }}
  {{- with $fetch.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  {{- include "capvec.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml $fetch.resources | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/capvec-fetch, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  - {name: models, mountPath: /models}
  {{- if and $fetch.existingSecret (eq $fetch.from "oci") }}
  - {name: registry, mountPath: /etc/capvec-registry, readOnly: true}
  {{- end }}
{{- end -}}
