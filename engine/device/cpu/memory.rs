//! How much memory the machine could give right now.

use crate::error::EngineError;

/// What is assumed where the system does not say: half a gigabyte.
const UNKNOWN: usize = 512 << 20;

/// Bytes available without swapping: Linux `MemAvailable`; elsewhere an assumed 512 MiB, so that a configuration must name its own limits.
///
/// # Errors
/// `Device` when /proc/meminfo cannot be read or understood.
pub fn available() -> Result<usize, EngineError> {
    if !cfg!(target_os = "linux") {
        return Ok(UNKNOWN);
    }
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|error| EngineError::Device(format!("/proc/meminfo: {error}")))?;
    parse(&text).ok_or_else(|| EngineError::Device("/proc/meminfo has no `MemAvailable: <n> kB`".to_owned()))
}

fn parse(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn meminfo_is_parsed_or_refused() {
        assert_eq!(parse("MemTotal: 10 kB\nMemAvailable:    7 kB\n"), Some(7 * 1024));
        assert_eq!(parse("MemTotal: 10 kB\n"), None);
        assert_eq!(parse("MemAvailable: many kB\n"), None);
    }
}
