//! The name under which a worker's transactions are known to the brokers.

use super::Config;

impl Config {
    /// Returns the transactional id: the configured one, or one that is this host's for the group
    /// and the input topic. It must stay the same over restarts, so that a worker ends what it left
    /// open when it was killed, and differ between workers and between deployments.
    ///
    /// # Errors
    ///
    /// With a sentence for the option, where the host has no name.
    pub fn transactional_id(&self) -> Result<String, String> {
        self.transactional_id_on(host_name().as_deref())
    }

    fn transactional_id_on(&self, host: Option<&str>) -> Result<String, String> {
        if !self.delivery.transactional_id.is_empty() {
            return Ok(self.delivery.transactional_id.clone());
        }
        let host = host.ok_or("is required, as the name of this host isn't known")?;
        Ok(format!("capvec-{}-{}-{host}", self.kafka.group, self.input.topic))
    }
}

/// Returns the name of this host; in a container it is the pod's or the container's.
fn host_name() -> Option<String> {
    let of_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = of_kernel.or_else(|| std::env::var("HOSTNAME").ok())?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_configured_one_or_the_hosts() {
        let mut config = Config::default();
        config.kafka.group = "group".into();
        config.input.topic = "captions".into();
        let of_host = config.transactional_id_on(Some("pod-3"));
        assert_eq!(of_host.as_deref(), Ok("capvec-group-captions-pod-3"));
        assert!(config.transactional_id_on(None).is_err());
        config.delivery.transactional_id = "mine".into();
        assert_eq!(config.transactional_id_on(None).as_deref(), Ok("mine"));
    }
}
