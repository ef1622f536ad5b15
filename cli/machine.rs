//! What this machine has: CPU features, cores, memory, GPUs. Read from the system, never guessed.

use std::path::Path;

/// Names of the CPU's vector extensions that matter to the CPU device.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! detect {
            ($($name:tt),*) => { $( if std::arch::is_x86_feature_detected!($name) { found.push($name); } )* };
        }
        detect!("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avx512bf16");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! detect {
            ($($name:tt),*) => { $( if std::arch::is_aarch64_feature_detected!($name) { found.push($name); } )* };
        }
        detect!("neon", "dotprod", "bf16", "i8mm", "sve");
    }
    if found.is_empty() {
        found.push("none");
    }
    found
}

/// Name of the CPU, where the system tells.
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.trim().to_string()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Total and available memory in bytes, where the system tells.
pub fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

/// GPUs that the NVIDIA driver knows, by name.
pub fn gpus() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(Path::new("/proc/driver/nvidia/gpus")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let text = std::fs::read_to_string(entry.path().join("information")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("Model:").map(|name| name.trim().to_string()))
        })
        .collect();
    names.sort();
    names
}
