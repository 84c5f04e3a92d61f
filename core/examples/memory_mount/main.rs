//! Mounts a file system in memory until it is unmounted: `memory_mount MOUNTPOINT [--strict] [--threads N]
//! [--no-allow-other] [--io-uring on|off]`. For tests and measurements of the session.

mod content;
mod file_system;

use std::sync::Arc;

use luciola_core::fuse::{IoUring, Session, SessionOptions};

fn main() -> std::io::Result<()> {
    let mut options = SessionOptions { allow_other: true, source: "memory".into(), ..Default::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--strict" => options.bypass_cache = true,
            "--io-uring" => {
                options.io_uring = match arguments.next().as_deref() {
                    Some("on") => IoUring::On,
                    Some("off") => IoUring::Off,
                    other => panic!("--io-uring takes on or off, not {other:?}"),
                };
            }
            "--no-allow-other" => options.allow_other = false,
            "--threads" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                options.threads_max = number.expect("--threads takes a number");
            }
            _ => options.mountpoint = argument.into(),
        }
    }
    let session = Session::mount(Arc::new(file_system::MemoryFileSystem::default()), options)?;
    println!("ready");
    session.run()
}
