"""The controls of Pod Security's "restricted" profile, as Kubernetes documents them, for a pod's spec.

`scripts/check-chart-on-apiserver` asks the API server's own admission; this is for machines that have none.
"""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS_FIELDS = ("hostNetwork", "hostPID", "hostIPC")


def faults(spec):
    """What "restricted" would refuse, and what this chart promises beyond it, a line each."""
    pod = spec.get("securityContext", {})
    for field in SYSCTLS_FIELDS:
        if spec.get(field):
            yield f"{field} is set"
    if pod.get("sysctls"):
        yield "sysctls are set"
    for volume in spec.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is of kind {kind}"
    if spec.get("automountServiceAccountToken") is not False:
        yield "a service account's token is mounted"
    if spec.get("enableServiceLinks") is not False:
        yield "variables of services are set"
    for part in ("initContainers", "containers"):
        for container in spec.get(part, []):
            for fault in container_faults(container, pod):
                yield f"{container['name']}: {fault}"


def container_faults(container, pod):
    own = container.get("securityContext", {})

    def setting(key):
        return own.get(key, pod.get(key))

    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "privilege escalation is allowed"
    if setting("runAsNonRoot") is not True:
        yield "may run as root"
    if setting("runAsUser") == 0:
        yield "runs as root"
    if (setting("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "keeps capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root"
    for port in container.get("ports", []):
        if port.get("hostPort"):
            yield "has a host port"
