//! usage: luciola-protogen DESCRIPTOR_SET OUT_DIR

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::method_options::IdempotencyLevel;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The methods of the metadata service whose requests begin with their `caller`: a `Verb` for each, and `MetaRequest` for
/// each of these requests.
fn verbs(set: &FileDescriptorSet) -> Result<String, std::fmt::Error> {
    let files = &set.file;
    let messages: BTreeMap<&str, &DescriptorProto> =
        files.iter().flat_map(|file| &file.message_type).map(|message| (message.name(), message)).collect();
    let service = files.iter().flat_map(|file| &file.service).find(|service| service.name() == "Meta");
    let mut constants = String::new();
    let mut requests = BTreeSet::new();
    for method in &service.expect("proto/meta.proto has it").method {
        let [input, output] = [method.input_type(), method.output_type()].map(bare);
        if messages[input].field.first().is_none_or(|field| field.name() != "caller") {
            continue;
        }
        let name = method.name();
        let level = method.options.as_ref().map_or(IdempotencyLevel::default(), |it| it.idempotency_level());
        let has_side_effects = level != IdempotencyLevel::NoSideEffects;
        requests.insert(input);
        let constant = screaming(name);
        writeln!(
            constants,
            "pub const {constant}: Verb<pb::{input}, pb::{output}> = Verb::new(Method::Meta{name}, {has_side_effects});"
        )?;
    }
    let mut out = "//! Generated from `proto/meta.proto` by `make proto`. Do not edit.\n\n".to_owned();
    writeln!(out, "use super::pb::{{self, Method}};\nuse super::verb::{{MetaRequest, Verb}};\n\n{constants}")?;
    for request in requests {
        let inode = messages[request].field.get(1).map_or("0".into(), inode_of);
        writeln!(
            out,
            "impl MetaRequest for pb::{request} {{
                fn inode(&self) -> u64 {{ {inode} }}
                fn set_caller(&mut self, caller: pb::Caller) {{ self.caller = Some(caller); }}
            }}\n"
        )?;
    }
    Ok(out)
}

/// The inode that a request is about, out of its second field.
fn inode_of(field: &FieldDescriptorProto) -> String {
    let name = field.name();
    match (field.r#type(), field.label(), bare(field.type_name())) {
        (Type::Uint64, Label::Optional, _) => format!("self.{name}"),
        (Type::Message, Label::Optional, "Path") => format!("self.{name}.as_ref().map_or(0, |path| path.at)"),
        (Type::Message, Label::Repeated, "CloseOne") => {
            format!("self.{name}.first().map_or(0, |one| one.inode)")
        }
        (Type::Message | Type::Uint64, Label::Repeated, _) | (Type::Uint32, Label::Optional, _) => "0".into(),
        other => panic!("field 2 of a request is an inode, a path, several of something or a number: {other:?}"),
    }
}

fn bare(name: &str) -> &str {
    name.trim_start_matches(".luciola.")
}

/// `StatFs` as `STAT_FS`.
fn screaming(name: &str) -> String {
    let mut out = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, descriptors, out] = arguments.as_slice() else {
        return Err("usage: luciola-protogen DESCRIPTOR_SET OUT_DIR".into());
    };
    let set = FileDescriptorSet::decode(std::fs::read(descriptors)?.as_slice())?;
    std::fs::write(Path::new(out).join("verbs.rs"), verbs(&set)?)?;
    prost_build::Config::new().out_dir(out).btree_map(["."]).compile_fds(set)?;
    Ok(())
}
