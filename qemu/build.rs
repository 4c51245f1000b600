//! Builds the library that is preloaded into QEMU. It is part of the agent's binary and written out when it starts.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    const SOURCE: &str = "preload/write_tracking.c";
    println!("cargo:rerun-if-changed={SOURCE}");
    let library = PathBuf::from(env::var("OUT_DIR")?).join("write_tracking.so");
    let status = cc::Build::new()
        .get_compiler()
        .to_command()
        .args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-s", "-o"])
        .arg(&library)
        .arg(SOURCE)
        .status()?;
    if !status.success() {
        return Err(format!("the C compiler failed on {SOURCE}").into());
    }
    Ok(())
}
