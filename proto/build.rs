//! Compiles the protos with `protox`, so that no system `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names = ["common", "device", "storage", "proxy", "upkeep", "archive"];
    let files: Vec<String> = names.iter().map(|n| format!("walb/v1/{n}.proto")).collect();
    for file in &files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(&files, ["proto"])?;
    // A method that a server does not have answers UNIMPLEMENTED; test doubles need few of them.
    tonic_prost_build::configure()
        .bytes(".")
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;
    Ok(())
}
