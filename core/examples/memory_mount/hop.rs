//! One message to another process and its answer, as a distributed file system needs at least one for each request.

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// Of a small request, and of its answer.
const MESSAGE_BYTES: usize = 128;
const START: Duration = Duration::from_secs(10);

static ADDRESS: OnceLock<String> = OnceLock::new();

thread_local! {
    static CONNECTION: OnceCell<UnixStream> = const { OnceCell::new() };
}

/// Start the other process, this program with `--answer`, at a socket in `directory`.
pub fn start(directory: &Path) -> io::Result<Child> {
    let address = directory.join("answer").to_string_lossy().into_owned();
    let child = Command::new(std::env::current_exe()?).args(["--answer", &address]).spawn()?;
    let began = std::time::Instant::now();
    while !Path::new(&address).exists() {
        assert!(began.elapsed() < START, "the other process did not start");
        thread::sleep(Duration::from_millis(5));
    }
    ADDRESS.set(address).expect("it is started once");
    Ok(child)
}

/// Send a message on this thread's connection, and wait for the answer.
pub fn go() {
    CONNECTION.with(|cell| {
        let mut connection = cell.get_or_init(|| {
            UnixStream::connect(ADDRESS.get().expect("it was started")).expect("the other process listens")
        });
        let mut message = [1; MESSAGE_BYTES];
        connection.write_all(&message).expect("the other process reads");
        connection.read_exact(&mut message).expect("the other process answers");
    });
}

/// Answer what comes to the socket at `address`, a thread for each connection, until the process is ended.
pub fn answer(address: &str) -> io::Result<()> {
    for connection in UnixListener::bind(address)?.incoming() {
        let mut connection = connection?;
        thread::spawn(move || {
            let mut message = [0; MESSAGE_BYTES];
            while connection.read_exact(&mut message).is_ok() && connection.write_all(&message).is_ok() {}
        });
    }
    Ok(())
}
