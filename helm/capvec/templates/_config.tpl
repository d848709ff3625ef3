{{/* The worker's configuration as TOML. */}}

{{/* A value; YAML's numbers may have become floats, which the program refuses for whole ones. */}}
{{- define "capvec.tomlValue" -}}
{{- if kindIs "string" . -}}
{{- toJson . -}}
{{- else if kindIs "bool" . -}}
{{- . -}}
{{- else if eq (float64 .) (float64 (int64 .)) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The GPUs that a worker with gpu.enabled names, so that it refuses to run without them. What isn't a whole GPU, a
slice or a share of one, CUDA shows as one device however many are asked for. */}}
{{- define "capvec.devices" -}}
{{- $names := list -}}
{{- range $ordinal := until (int .Values.gpu.count) -}}
{{- $names = append $names (printf "cuda:%d" $ordinal) -}}
{{- end -}}
{{- eq .Values.gpu.resourceName "nvidia.com/gpu" | ternary (join "," $names) "cuda:0" -}}
{{- end -}}

{{- define "capvec.toml" -}}
{{- $config := deepCopy .Values.config -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}
{{- $_ := set $config.kafka "brokers" $kafka.brokers -}}
{{- with include "capvec.librdkafkaFiles" . | fromYaml }}{{ $_ := set $config.kafka "librdkafka_files" . }}{{ end -}}
{{- $_ := set $config "model" (dict "package" (include "capvec.package" .) "verify" .Values.model.verify) -}}
{{- if .Values.gpu.enabled -}}
{{- $devices := dict "device" (include "capvec.devices" .) -}}
{{- $_ := set $config "embed" (merge (get $config "embed" | default dict) $devices) -}}
{{- end -}}
{{- $properties := include "capvec.librdkafka" . | fromYaml -}}
{{- range $section, $options := $config }}
[{{ $section }}]
{{- range $key, $value := $options }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "capvec.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key, $map := $options }}
{{- if and (kindIs "map" $map) (ne $key "librdkafka") }}

[{{ $section }}.{{ $key }}]
{{- range $name, $value := $map }}
{{ toJson $name }} = {{ include "capvec.tomlValue" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $section "kafka") $properties }}

[kafka.librdkafka]
{{- range $key, $value := $properties }}
{{ toJson $key }} = {{ include "capvec.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* The files that a pod reads, by name. */}}
{{- define "capvec.configFiles" -}}
capvec.toml: |
  # Written by the chart from its values.
  {{- include "capvec.toml" . | nindent 2 }}
{{- if eq .Values.model.source "fetch" }}
SHA256SUMS: |
  {{- range .Values.model.fetch.files }}
  {{ .sha256 }}  {{ .name }}
  {{- end }}
fetch-model.sh: |
  {{- .Files.Get "files/fetch-model.sh" | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The same as annotations of the pod, which a volume makes files of again. So each pod keeps the configuration that it was
made with, whatever becomes of the release: one that restarts while a rollout stands still mustn't start with what made it
stand still. A changed one replaces the pods. */}}
{{- define "capvec.configAnnotations" -}}
{{- range $name, $text := include "capvec.configFiles" . | fromYaml }}
capvec/{{ $name }}: {{ toJson $text }}
{{- end }}
{{- end -}}
