//! A recorded disk for tests in other languages: `power_disk MOUNTPOINT` mounts it and takes one command a line, and
//! answers each with a line. It ends, and unmounts, at the end of its input.
//!
//!     record NAME                                   a recorded volume, empty: the directory MOUNTPOINT/NAME
//!     position NAME                                 changes recorded so far
//!     finish NAME                                   ends the recording: changes in all
//!     changes NAME                                  changes of a finished recording
//!     kind NAME CUT                                 what change number CUT is, for people
//!     crash NAME CUT METADATA DATA SEED NEW [record]  shows as volume NEW what NAME may hold if power is lost before
//!                                                   change number CUT; `same` if it is what the last `crash` with these
//!                                                   METADATA and DATA showed
//!     again NAME METADATA DATA NEW                  shows as volume NEW what the last `crash` with these showed
//!     remove NAME                                   removes a volume
//!
//! METADATA: all, nothing, journal or separate. DATA: all, nothing, pages or torn (see `crash`).

mod crash;
mod disk;
mod image;

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::Path;

use crash::{Data, Metadata, Replay, Variant};
use disk::{Disk, Log};
use image::Image;

struct Recordings {
    disk: Disk,
    running: HashMap<String, u64>,
    finished: HashMap<String, &'static Log>,
    /// How far each finished recording was replayed.
    replays: HashMap<String, (usize, Replay<'static>)>,
    shown: HashMap<(String, Metadata, Data), Image>,
}

fn main() -> std::io::Result<()> {
    let mountpoint = std::env::args().nth(1).expect("power_disk MOUNTPOINT");
    let disk = Disk::mount(Path::new(&mountpoint))?;
    let mut recordings = Recordings {
        disk,
        running: HashMap::new(),
        finished: HashMap::new(),
        replays: HashMap::new(),
        shown: HashMap::new(),
    };
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = recordings.carry_out(&words).unwrap_or_else(|| format!("cannot do: {line}"));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

impl Recordings {
    fn carry_out(&mut self, words: &[&str]) -> Option<String> {
        match *words {
            ["record", name] => {
                let (_, volume) = self.disk.record(name, &Image::default());
                self.running.insert(name.into(), volume);
                Some("ok".into())
            }
            ["position", name] => Some(self.disk.position(*self.running.get(name)?).to_string()),
            ["finish", name] => {
                // Kept until the process ends.
                let log: &'static Log = Box::leak(Box::new(self.disk.finish(self.running.remove(name)?)));
                self.finished.insert(name.into(), log);
                Some(log.changes.len().to_string())
            }
            ["changes", name] => Some(self.finished.get(name)?.changes.len().to_string()),
            ["again", name, metadata, data, new] => {
                let key = (name.into(), parse_metadata(metadata)?, parse_data(data)?);
                self.disk.add(new, self.shown.get(&key)?);
                Some("ok".into())
            }
            ["kind", name, cut] => {
                let text = format!("{:?}", self.finished.get(name)?.changes.get(cut.parse::<usize>().ok()?));
                Some(text.chars().take(200).collect())
            }
            ["crash", name, cut, metadata, data, seed, new] => {
                let (metadata, data) = (parse_metadata(metadata)?, parse_data(data)?);
                let variant = Variant { metadata, data, seed: seed.parse().ok()? };
                let image = self.crash(name, cut.parse().ok()?, variant)?;
                let last = self.shown.insert((name.into(), metadata, data), image.clone());
                if last.as_ref() == Some(&image) {
                    return Some("same".into());
                }
                self.disk.add(new, &image);
                Some("ok".into())
            }
            ["crash", name, cut, metadata, data, seed, new, "record"] => {
                let (metadata, data) = (parse_metadata(metadata)?, parse_data(data)?);
                let variant = Variant { metadata, data, seed: seed.parse().ok()? };
                let image = self.crash(name, cut.parse().ok()?, variant)?;
                self.running.insert(new.into(), self.disk.record(new, &image).1);
                Some("ok".into())
            }
            ["remove", name] => {
                // What the kernel still holds open goes with the mount.
                Some(self.disk.remove(name).map_or_else(|error| error.to_string(), |()| "ok".into()))
            }
            _ => None,
        }
    }

    fn crash(&mut self, name: &str, cut: usize, variant: Variant) -> Option<Image> {
        let log = *self.finished.get(name)?;
        let (at, replay) = self.replays.entry(name.into()).or_insert_with(|| (0, Replay::new(log)));
        if *at > cut {
            (*at, *replay) = (0, Replay::new(log));
        }
        while *at < cut && replay.advance() {
            *at += 1;
        }
        Some(replay.crash(variant))
    }
}

fn parse_metadata(word: &str) -> Option<Metadata> {
    match word {
        "all" => Some(Metadata::All),
        "nothing" => Some(Metadata::Nothing),
        "journal" => Some(Metadata::Journal),
        "separate" => Some(Metadata::Separate),
        _ => None,
    }
}

fn parse_data(word: &str) -> Option<Data> {
    match word {
        "all" => Some(Data::All),
        "nothing" => Some(Data::Nothing),
        "pages" => Some(Data::Pages),
        "torn" => Some(Data::Torn),
        _ => None,
    }
}
