//! Runs of pages: in what a state differs from another.

use super::fields::Malformed;
use crate::chunk::state::{ContentState, Extent, HOLE, PageNumber, compress};

/// A run of pages of a state, from page `index` of the chunk on.
#[derive(Clone, Copy)]
pub struct Run {
    pub index: usize,
    pub extent: Extent,
}

impl Run {
    pub fn new(index: usize, first: PageNumber, count: u32) -> Result<Run, Malformed> {
        if count == 0 || (first != HOLE && count > HOLE - first) {
            return Err(Malformed::Field);
        }
        Ok(Run { index, extent: Extent { first, count } })
    }

    pub fn end(&self) -> usize {
        self.index + self.extent.count as usize
    }
}

/// The runs of all pages of `state`, or of those that are not those of `base`: another page, or other bytes in it.
pub fn runs_of(state: &ContentState, base: Option<&ContentState>) -> Vec<Run> {
    match base {
        None => all_runs(state),
        Some(base) => changed_runs(state, base),
    }
}

fn all_runs(state: &ContentState) -> Vec<Run> {
    let mut index = 0;
    let runs = state.extents.iter().map(|&extent| {
        let run = Run { index, extent };
        index = run.end();
        run
    });
    runs.collect()
}

/// Both states are walked extent by extent: an update of a chunk of many pages shares all but a few with its base.
fn changed_runs(state: &ContentState, base: &ContentState) -> Vec<Run> {
    let mut runs = Vec::new();
    let (mut own, mut other) = (Pages::of(state), Pages::of(base));
    let mut index = 0;
    while let Some(extent) = own.next {
        let count = other.next.map_or(extent.count, |other| other.count.min(extent.count));
        let part = Extent { count, ..extent };
        let end = index + count as usize;
        if other.next.is_none_or(|other| other.first != extent.first) {
            push(&mut runs, Run { index, extent: part });
        } else {
            let crcs = state.crcs[index..end].iter().zip(&base.crcs[index..end]);
            for (offset, _) in crcs.enumerate().filter(|(_, (crc, other))| crc != other) {
                push(&mut runs, Run { index: index + offset, extent: skipped(part, offset as u32, 1) });
            }
        }
        own.skip(count);
        other.skip(count);
        index = end;
    }
    runs
}

/// Add a run, or make the last one longer.
fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end() == run.index && last.extent.precedes(run.extent.first) => {
            last.extent.count += run.extent.count;
        }
        _ => runs.push(run),
    }
}

/// `count` pages of `extent` behind the first `offset`.
fn skipped(extent: Extent, offset: u32, count: u32) -> Extent {
    let first = if extent.first == HOLE { HOLE } else { extent.first + offset };
    Extent { first, count }
}

/// What is left of the extents of a state.
struct Pages<'a> {
    next: Option<Extent>,
    rest: std::slice::Iter<'a, Extent>,
}

impl Pages<'_> {
    fn of(state: &ContentState) -> Pages<'_> {
        let mut rest = state.extents.iter();
        Pages { next: rest.next().copied(), rest }
    }

    /// Leave out `count` pages, at most those of the next extent.
    fn skip(&mut self, count: u32) {
        let Some(extent) = self.next else { return };
        assert!(count <= extent.count, "a part of one extent");
        self.next = match extent.count - count {
            0 => self.rest.next().copied(),
            left => Some(skipped(extent, count, left)),
        };
    }
}

/// The extents and checksums of a state of `count` pages: those of `base` where no run covers it. `crcs` gives the checksums
/// of the pages of the runs, in order.
pub fn apply(
    runs: &[Run],
    mut crcs: impl FnMut() -> Result<u32, Malformed>,
    base: Option<&ContentState>,
    count: usize,
) -> Result<(Vec<Extent>, Vec<u32>), Malformed> {
    let mut pages: Vec<PageNumber> = base.iter().flat_map(|base| base.pages()).collect();
    let mut sums = base.map_or_else(Vec::new, |base| base.crcs.clone());
    let shared = pages.len();
    pages.resize(count, HOLE);
    sums.resize(count, 0);
    let mut end = 0;
    for run in runs {
        // Between two runs there is only what the base has, too.
        let is_gap_shared = run.index == end || (run.index > end && run.index <= shared);
        if !is_gap_shared || run.end() > count {
            return Err(Malformed::Field);
        }
        for offset in 0..run.extent.count {
            let at = run.index + offset as usize;
            pages[at] = if run.extent.first == HOLE { HOLE } else { run.extent.first + offset };
            sums[at] = crcs()?;
        }
        end = run.end();
    }
    if end < count && count > shared {
        return Err(Malformed::Field);
    }
    Ok((compress(&pages), sums))
}
