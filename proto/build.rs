//! Compiles the protos with `protox`, so that no system `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names = ["common", "device", "storage", "proxy", "archive"];
    let files: Vec<String> = names.iter().map(|n| format!("walb/v1/{n}.proto")).collect();
    for file in &files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
