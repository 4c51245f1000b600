//! Builds the library that is preloaded into QEMU. It is part of the agent's binary and written out when it starts.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    const SOURCES: [&str; 2] = ["preload/write_tracking.c", "preload/huge_pages.c"];
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    let library = PathBuf::from(env::var("OUT_DIR")?).join("write_tracking.so");
    let status = cc::Build::new()
        .get_compiler()
        .to_command()
        .args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-s", "-o"])
        .arg(&library)
        .args(SOURCES)
        .status()?;
    if !status.success() {
        return Err(format!("the C compiler failed on {}", SOURCES.join(", ")).into());
    }
    Ok(())
}
