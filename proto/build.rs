//! Compiles the protocol definitions without needing `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let files =
        ["kv", "state_machine", "admin", "raft"].map(|name| format!("raftkv/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");

    let descriptors = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("raftkv_descriptor.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
