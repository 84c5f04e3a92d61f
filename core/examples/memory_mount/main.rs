//! Mounts a file system in memory until it is unmounted: `memory_mount MOUNTPOINT [--strict] [--threads N]
//! [--no-allow-other] [--io-uring auto|always|never] [--hop DIRECTORY]`. For tests and measurements of the session.
//!
//! With `--hop` every request that a distributed file system cannot answer alone waits for the answer of a second
//! process, over a socket in `DIRECTORY`.

mod content;
mod file_system;
mod hop;

use std::path::Path;
use std::sync::Arc;

use luciola_core::fuse::{IoUring, Session, SessionOptions};

fn main() -> std::io::Result<()> {
    let mut options = SessionOptions { allow_other: true, source: "memory".into(), ..Default::default() };
    let mut file_system = file_system::MemoryFileSystem::default();
    let mut other = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--strict" => options.bypass_cache = true,
            "--io-uring" => {
                let choice = arguments.next().and_then(|name| IoUring::from_name(&name));
                options.io_uring = choice.expect("--io-uring takes auto, always or never");
            }
            "--no-allow-other" => options.allow_other = false,
            "--threads" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                options.threads_max = number.expect("--threads takes a number");
            }
            "--hop" => {
                let directory = arguments.next().expect("--hop takes a directory");
                other = Some(hop::start(Path::new(&directory))?);
                file_system.before_answer = Some(hop::go);
            }
            "--answer" => return hop::answer(&arguments.next().expect("--answer takes a path")),
            _ => options.mountpoint = argument.into(),
        }
    }
    let session = Session::mount(Arc::new(file_system), options)?;
    println!("ready");
    let ended = session.run();
    if let Some(mut child) = other {
        child.kill()?;
        child.wait()?;
    }
    ended
}
