//! Compiles the `.proto` files with protox, so that no protoc is needed.

use std::{error::Error, path::Path};

const FILES: [&str; 4] = ["control", "mesh", "ring", "sync"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    let files: Vec<_> =
        FILES.iter().map(|name| root.join(format!("satrap/v1/{name}.proto"))).collect();
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(&files, [root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
