//! One request of a thread, from its header to what is to be answered, whichever way it came and the answer goes.

use std::time::Instant;

use rustix::io::Errno;

use crate::buffer::Placement;
use crate::panics::caught;

use super::abi::{InHeader, Opcode};
use super::body::Body;
use super::caller::{self, Caller};
use super::counters::RequestOutcome;
use super::request::{self, Answer, Context, Request};
use super::shared::SessionShared;
use super::slot::ThreadSlot;

/// What a thread does after a request.
pub enum Executed {
    /// It answers so. The bytes of `Answer::Out` are in `out`.
    Answered(Result<Answer, Errno>),
    /// Nothing: the request was answered meanwhile, because its program was killed.
    AnsweredElsewhere,
}

/// Where the bytes of a request are.
pub struct Message<'a> {
    pub header: &'a InHeader,
    pub body: Body<'a>,
    /// Page-aligned memory for the payload: of a WRITE, or to read into.
    pub payload: &'a Placement,
    pub payload_length: usize,
}

/// Carry out a request that `slot`'s thread has begun (`ThreadSlot::begin`). `out` is emptied first.
pub fn execute(
    shared: &SessionShared,
    slot: &ThreadSlot,
    message: Message<'_>,
    out: &mut Vec<u8>,
) -> Executed {
    let began = Instant::now();
    let Message { header, body, payload, payload_length } = message;
    let mut request = Request {
        context: Context {
            fs: &*shared.fs,
            options: &shared.options,
            agreement: &shared.agreement,
            notifier: &shared.notifier,
        },
        caller: Caller {
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            named_group: shared.agreement.names_groups().then(|| caller::named_group(header, body.0)),
        },
        inode: header.inode,
        opcode: header.opcode,
        body,
        payload,
        payload_length,
        opened: None,
    };
    out.clear();
    // A bug in one operation is one program's EIO, not the loss of the mount.
    let result = caught(|| request::perform(&mut request, out));
    if !slot.claim(header.unique) {
        // Its program was killed, and the kernel knows nothing of what was opened.
        request.close_opened();
        shared.counters.ended(header.opcode, RequestOutcome::Interrupted, began.elapsed());
        return Executed::AnsweredElsewhere;
    }
    let result = result.unwrap_or_else(|| {
        log::error!("operation {} on inode {} panicked; answered with EIO", header.opcode, header.inode);
        // The kernel knows nothing of what was opened.
        request.close_opened();
        if is_unanswered(header.opcode) { Ok(Answer::Nothing) } else { Err(Errno::IO) }
    });
    shared.counters.ended(header.opcode, RequestOutcome::of(&result), began.elapsed());
    if let Ok(answer) = &result {
        shared.counters.moved(header.opcode, answer, payload_length);
    }
    Executed::Answered(result)
}

fn is_unanswered(opcode: u32) -> bool {
    matches!(Opcode::from_wire(opcode), Some(Opcode::Forget | Opcode::BatchForget))
}
