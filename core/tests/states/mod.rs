//! How large the worlds of the model check are: recorded, so that none shrinks unseen.
//!
//! A change of the protocol or of a world that is meant to change their size renews the record:
//! `LUCIOLA_RECORD=1 cargo test --test craq_model`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

/// Distinct states, and the length of the longest of the shortest ways to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub states: usize,
    pub depth: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, depth {}", self.states, self.depth)
    }
}

/// One test renews the record at a time.
static RECORD: Mutex<()> = Mutex::new(());

/// The world of that name must be as large as recorded.
pub fn check(name: &str, size: Size) {
    let _guard = RECORD.lock().expect("no test ends within");
    let mut recorded = read();
    if std::env::var_os("LUCIOLA_RECORD").is_some() {
        recorded.insert(name.to_owned(), size);
        return write(&recorded);
    }
    let expected = recorded.get(name).copied();
    let advice = "if that is meant, renew the record: LUCIOLA_RECORD=1 cargo test --test craq_model";
    assert_eq!(Some(size), expected, "the world {name:?} has another size than recorded; {advice}");
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/states/record.txt"))
}

/// Lines of `NAME: STATES DEPTH`.
fn read() -> BTreeMap<String, Size> {
    let text = fs::read_to_string(path()).unwrap_or_default();
    let parse = |line: &str| {
        let (name, numbers) = line.split_once(": ")?;
        let (states, depth) = numbers.split_once(' ')?;
        Some((name.to_owned(), Size { states: states.parse().ok()?, depth: depth.parse().ok()? }))
    };
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("record.txt: {line:?}"))).collect()
}

fn write(recorded: &BTreeMap<String, Size>) {
    let line = |(name, Size { states, depth }): (&String, &Size)| format!("{name}: {states} {depth}\n");
    fs::write(path(), recorded.iter().map(line).collect::<String>()).expect("the record can be written");
}
