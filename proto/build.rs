//! Compiles the `.proto` files with protox, so that no protoc is needed.

use std::{env, error::Error, fs, path::Path};

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

const ETCD: [&str; 5] = ["kv", "auth", "rpc", "lock", "election"];
const SATRAP: [&str; 7] = ["control", "fault", "mesh", "ring", "store", "store_watch", "sync"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [("etcd", ETCD.as_slice()), ("satrap/v1", SATRAP.as_slice())]
        .into_iter()
        .flat_map(|(folder, names)| names.iter().map(move |name| format!("{folder}/{name}.proto")))
        .map(|name| Path::new("proto").join(name))
        .collect::<Vec<_>>();
    let all = protox::compile(&files, ["proto"])?;
    // `OUT_DIR` is an argument from cargo, not configuration.
    #[expect(clippy::disallowed_methods, reason = "how cargo passes arguments to a build script")]
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("descriptors.bin"), all.encode_to_vec())?;

    // `satrap.v1` has two segments and its module one, so relative paths to `mvccpb` would miss. The
    // files of this first run for the packages of etcd lack the messages that are mapped elsewhere;
    // the second run overwrites them.
    let of_satrap = |file: &FileDescriptorProto| matches!(file.package(), "satrap.v1" | "mvccpb");
    let satrap = all.file.iter().filter(|file| of_satrap(file)).cloned().collect();
    let etcd = all.file.into_iter().filter(|file| file.package() != "satrap.v1").collect();
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".mvccpb", "crate::mvccpb")
        .compile_fds(FileDescriptorSet { file: satrap })?;
    tonic_prost_build::configure().bytes(".").compile_fds(FileDescriptorSet { file: etcd })?;
    Ok(())
}
