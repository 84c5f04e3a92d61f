//! usage: luciola-protogen DESCRIPTOR_SET OUT_DIR

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, descriptors, out] = arguments.as_slice() else {
        return Err("usage: luciola-protogen DESCRIPTOR_SET OUT_DIR".into());
    };
    let set = prost_types::FileDescriptorSet::decode(std::fs::read(descriptors)?.as_slice())?;
    prost_build::Config::new().out_dir(out).btree_map(["."]).compile_fds(set)?;
    Ok(())
}
