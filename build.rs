//! Build script of `kernels/`: compiles kernels/cuda/*.cu with nvcc where there is one, and says so where there is none.
//!
//! Every .cu becomes one object (a `cc::Build` of its own: with several files cc would ask for relocatable device code and a device
//! link, which our kernels do not need), all objects one archive, linked with the static CUDA runtime. The archive belongs to the
//! crate that declares the FFI. Without nvcc the crate builds CPU-only: `have_cuda_kernels` is not set and `available()` is false.
//!
//! Environment: PAGODA_CUDA=off builds CPU-only on purpose; PAGODA_CUDA_HOME names the toolkit (see scripts/setup-cuda.sh);
//! PAGODA_CUDA_ARCHS is the list of architectures, by default `DEFAULT_ARCHS`.
#![allow(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Ampere, Ada, Hopper (with its own instructions) and both Blackwells (12.x with those of its family). The last one is kept as PTX too, for
/// GPUs to come.
const DEFAULT_ARCHS: &str = "80,86,89,90a,100,120f";

fn main() {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-check-cfg=cfg(have_cuda_kernels)");
    for path in ["../build.rs", "include", "cuda"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for name in ["PAGODA_CUDA", "PAGODA_CUDA_HOME", "PAGODA_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    #[cfg(feature = "bindgen")]
    generate_bindings(&crate_dir);
    if env::var_os("PAGODA_CUDA").is_some_and(|v| v == "off" || v == "0") {
        return;
    }
    match find_toolkit(&crate_dir) {
        Some(home) => build_kernels(&crate_dir, &home),
        None => println!(
            "cargo::warning=nvcc not found (PAGODA_CUDA_HOME, CUDA_HOME, CUDA_PATH, PATH, .cuda, /usr/local/cuda): \
             building for CPU only; scripts/setup-cuda.sh fetches a compiler, PAGODA_CUDA=off silences this"
        ),
    }
}

/// The first folder that holds both compiler and runtime headers.
fn find_toolkit(crate_dir: &Path) -> Option<PathBuf> {
    let named = ["PAGODA_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).filter_map(|bin| bin.parent().map(Path::to_path_buf)).collect::<Vec<_>>();
    let beside = crate_dir.ancestors().map(|dir| dir.join(".cuda"));
    named
        .chain(on_path)
        .chain(beside)
        .chain([PathBuf::from("/usr/local/cuda")])
        .find(|home| home.join("bin/nvcc").is_file() && home.join("include/cuda_runtime.h").is_file())
}

fn build_kernels(crate_dir: &Path, home: &Path) {
    // SAFETY: the script has started no thread yet, so nobody reads the environment meanwhile. cc knows no other way to name nvcc.
    unsafe { env::set_var("NVCC", home.join("bin/nvcc")) };
    let archs = env::var("PAGODA_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let flags = gencode_flags(&archs);
    let sources = cuda_sources(&crate_dir.join("cuda"));
    let objects = compile_all(&sources, crate_dir, &flags);

    // Prints the search path and `static=pagoda_kernels`; the runtime has to come after it on the link line.
    cc::Build::new().objects(objects).compile("pagoda_kernels");
    let lib_dir = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"]
        .iter()
        .map(|dir| home.join(dir))
        .find(|dir| dir.join("libcudart_static.a").is_file())
        .unwrap_or_else(|| panic!("{}: no libcudart_static.a in lib64, lib or targets", home.display()));
    println!("cargo::rustc-link-search=native={}", lib_dir.display());
    for library in ["static=cudart_static", "dylib=stdc++", "dylib=rt", "dylib=dl", "dylib=pthread"] {
        println!("cargo::rustc-link-lib={library}");
    }
    println!("cargo::rustc-cfg=have_cuda_kernels");
}

/// `80,90a` -> machine code for each, and PTX of the last so that later GPUs can compile it at load: without what only its family has.
fn gencode_flags(archs: &str) -> Vec<String> {
    let archs: Vec<&str> = archs.split(',').map(|a| a.trim().trim_start_matches("sm_")).filter(|a| !a.is_empty()).collect();
    assert!(
        !archs.is_empty() && archs.iter().all(|a| a.starts_with(|c: char| c.is_ascii_digit())),
        "PAGODA_CUDA_ARCHS: expected a list like {DEFAULT_ARCHS}, got {archs:?}"
    );
    let mut flags: Vec<String> = archs.iter().map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}")).collect();
    let newest = archs[archs.len() - 1].trim_end_matches('f');
    flags.push(format!("-gencode=arch=compute_{newest},code=compute_{newest}"));
    flags
}

/// All .cu files below `dir`, sorted.
fn cuda_sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut sources = Vec::new();
    for path in entries.map(|entry| entry.expect("readable directory entry").path()) {
        if path.is_dir() {
            sources.extend(cuda_sources(&path));
        } else if path.extension().is_some_and(|x| x == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    sources
}

/// One nvcc a file, as many at once as cargo allows.
fn compile_all(sources: &[PathBuf], crate_dir: &Path, flags: &[String]) -> Vec<PathBuf> {
    let num_jobs: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let queue = Mutex::new(sources.iter());
    let objects = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..num_jobs.min(sources.len()) {
            scope.spawn(|| {
                loop {
                    let Some(source) = queue.lock().expect("queue").next() else { break };
                    let made = compile_one(source, crate_dir, flags);
                    objects.lock().expect("objects").extend(made);
                }
            });
        }
    });
    let mut objects = objects.into_inner().expect("objects");
    objects.sort();
    objects
}

fn compile_one(source: &Path, crate_dir: &Path, flags: &[String]) -> Vec<PathBuf> {
    let mut build = cc::Build::new();
    build
        .cuda(true)
        .cargo_metadata(false)
        .debug(false) // cc turns debug info into -G, which switches device optimisation off
        .warnings(false) // cc's -Wall would go to nvcc's own parser
        .opt_level(3)
        .pic(true)
        .include(crate_dir.join("include"))
        .flag("-std=c++17")
        .flag("--expt-relaxed-constexpr")
        .flag("-lineinfo");
    for flag in flags {
        build.flag(flag);
    }
    build.file(source).compile_intermediates()
}

/// `sys.rs` again, into OUT_DIR: tests/bindings.rs compares it with the committed file.
#[cfg(feature = "bindgen")]
fn generate_bindings(crate_dir: &Path) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("sys.rs");
    bindgen::Builder::default()
        .header(crate_dir.join("include/pagoda.h").display().to_string())
        .allowlist_item("(pagoda|PAGODA)_.*")
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(true)
        .use_core()
        .disable_header_comment()
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .expect("bindings from include/pagoda.h")
        .write_to_file(&out)
        .unwrap_or_else(|e| panic!("{}: {e}", out.display()));
}
