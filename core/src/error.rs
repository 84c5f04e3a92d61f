//! What a caller may meet while nothing is wrong with the program: the tree of `fs/errors.py`, in Rust.
//!
//! One error type; its [`Kind`] is the stable code that travels. Programmer errors are assertions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::types::Status;
use crate::wire::pb;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which class of `fs/errors.py` an error is. `code` is the wire form and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A code that this version does not know.
    Other,
    NotFound,
    AlreadyExists,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    PermissionDenied,
    Unauthenticated,
    InvalidArgument,
    NoSpace,
    Unsupported,
    CorruptData,
    Unavailable,
    Timeout,
    Busy,
    Conflict,
    MaybeCommitted,
    StaleRouting,
    ConfigError,
}

impl Kind {
    pub const ALL: [Kind; 19] = [
        Kind::Other,
        Kind::NotFound,
        Kind::AlreadyExists,
        Kind::NotADirectory,
        Kind::IsADirectory,
        Kind::NotEmpty,
        Kind::PermissionDenied,
        Kind::Unauthenticated,
        Kind::InvalidArgument,
        Kind::NoSpace,
        Kind::Unsupported,
        Kind::CorruptData,
        Kind::Unavailable,
        Kind::Timeout,
        Kind::Busy,
        Kind::Conflict,
        Kind::MaybeCommitted,
        Kind::StaleRouting,
        Kind::ConfigError,
    ];

    pub fn code(self) -> &'static str {
        match self {
            Kind::Other => "error",
            Kind::NotFound => "not_found",
            Kind::AlreadyExists => "already_exists",
            Kind::NotADirectory => "not_a_directory",
            Kind::IsADirectory => "is_a_directory",
            Kind::NotEmpty => "not_empty",
            Kind::PermissionDenied => "permission_denied",
            Kind::Unauthenticated => "unauthenticated",
            Kind::InvalidArgument => "invalid_argument",
            Kind::NoSpace => "no_space",
            Kind::Unsupported => "unsupported",
            Kind::CorruptData => "corrupt_data",
            Kind::Unavailable => "unavailable",
            Kind::Timeout => "timeout",
            Kind::Busy => "busy",
            Kind::Conflict => "conflict",
            Kind::MaybeCommitted => "maybe_committed",
            Kind::StaleRouting => "stale_routing",
            Kind::ConfigError => "config_error",
        }
    }

    /// The kind with that code; `Other` for a code that this version does not know.
    pub fn from_code(code: &str) -> Kind {
        Kind::ALL.into_iter().find(|kind| kind.code() == code).unwrap_or(Kind::Other)
    }

    /// The Linux errno of an error that names no other.
    pub fn errno(self) -> i32 {
        let errno = match self {
            Kind::Other | Kind::CorruptData | Kind::Unavailable | Kind::MaybeCommitted => Errno::IO,
            Kind::NotFound => Errno::NOENT,
            Kind::AlreadyExists => Errno::EXIST,
            Kind::NotADirectory => Errno::NOTDIR,
            Kind::IsADirectory => Errno::ISDIR,
            Kind::NotEmpty => Errno::NOTEMPTY,
            Kind::PermissionDenied | Kind::Unauthenticated => Errno::ACCESS,
            Kind::InvalidArgument | Kind::ConfigError => Errno::INVAL,
            Kind::NoSpace => Errno::NOSPC,
            Kind::Unsupported => Errno::NOTSUP,
            Kind::Timeout => Errno::TIMEDOUT,
            Kind::Busy => Errno::BUSY,
            Kind::Conflict => Errno::AGAIN,
            Kind::StaleRouting => Errno::STALE,
        };
        errno.raw_os_error()
    }

    /// Whether the same request may succeed later by itself.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Kind::Unavailable
                | Kind::Timeout
                | Kind::Busy
                | Kind::Conflict
                | Kind::MaybeCommitted
                | Kind::StaleRouting
        )
    }
}

/// An operating error. Cheap to clone: a failed write-back is reported by every handle of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    errno: i32,
    message: Cow<'static, str>,
    fields: BTreeMap<String, String>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Error {
        Error { kind, errno: kind.errno(), message: message.into(), fields: BTreeMap::new() }
    }

    /// Of an operation that panicked.
    pub fn mistake() -> Error {
        Error::new(Kind::Other, "internal error (see the log of this client)")
    }

    /// The same error with another errno than its kind's: EPERM, ENAMETOOLONG, ELOOP, EFBIG.
    pub fn with_errno(mut self, errno: Errno) -> Error {
        self.errno = errno.raw_os_error();
        self
    }

    /// The same error with `what` was being done before its message.
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = Cow::Owned(format!("{what}: {}", self.message));
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn errno(&self) -> i32 {
        self.errno
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }

    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Kind::InvalidArgument, message)
    }

    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Kind::Unavailable, message)
    }

    pub fn timeout(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Kind::Timeout, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Status> for Error {
    /// `Status::Ok` is not an error: passing it is a programmer error.
    fn from(status: Status) -> Error {
        let kind = match status {
            Status::Ok => unreachable!("Status::Ok is not an error"),
            Status::NotFound => Kind::NotFound,
            Status::WrongChainVersion | Status::NotHead => Kind::StaleRouting,
            Status::NotServing | Status::NoLease | Status::MissingVersion | Status::Disconnected => {
                Kind::Unavailable
            }
            Status::Dirty | Status::Busy => Kind::Busy,
            Status::Checksum => Kind::CorruptData,
            Status::NoSpace => Kind::NoSpace,
            Status::Io => Kind::Other,
            Status::Invalid => Kind::InvalidArgument,
            Status::Timeout => Kind::Timeout,
            Status::Stale => Kind::Conflict,
            Status::Denied => Kind::PermissionDenied,
        };
        Error::new(kind, status.to_string())
    }
}

impl From<pb::Error> for Error {
    fn from(error: pb::Error) -> Error {
        let kind = Kind::from_code(&error.code);
        let errno = if error.errno > 0 { error.errno } else { kind.errno() };
        Error { kind, errno, message: Cow::Owned(error.message), fields: error.fields }
    }
}

impl From<&Error> for pb::Error {
    fn from(error: &Error) -> pb::Error {
        pb::Error {
            code: error.kind.code().to_owned(),
            message: error.message.to_string(),
            errno: error.errno,
            retryable: error.is_retryable(),
            fields: error.fields.clone(),
        }
    }
}

impl From<Errno> for Error {
    /// An error of a system call on this machine.
    fn from(errno: Errno) -> Error {
        let kind = match errno {
            Errno::NOENT => Kind::NotFound,
            Errno::EXIST => Kind::AlreadyExists,
            Errno::NOTDIR => Kind::NotADirectory,
            Errno::ISDIR => Kind::IsADirectory,
            Errno::NOTEMPTY => Kind::NotEmpty,
            Errno::ACCESS | Errno::PERM => Kind::PermissionDenied,
            Errno::INVAL | Errno::NAMETOOLONG | Errno::LOOP | Errno::FBIG => Kind::InvalidArgument,
            Errno::NOSPC | Errno::DQUOT => Kind::NoSpace,
            Errno::NOTSUP | Errno::NOSYS => Kind::Unsupported,
            Errno::TIMEDOUT => Kind::Timeout,
            Errno::BUSY => Kind::Busy,
            Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::CONNABORTED
            | Errno::NOTCONN
            | Errno::PIPE
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH => Kind::Unavailable,
            _ => Kind::Other,
        };
        let mut error = Error::new(kind, io::Error::from(errno).to_string());
        // The caller of a file system knows nothing of our sockets.
        if kind != Kind::Unavailable {
            error.errno = errno.raw_os_error();
        }
        error
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        if let Some(errno) = Errno::from_io_error(&error) {
            return Error::from(errno);
        }
        let kind = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Kind::Timeout,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::WriteZero
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected => Kind::Unavailable,
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Kind::InvalidArgument,
            _ => Kind::Other,
        };
        Error::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_as_its_kind() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), kind);
        }
        assert_eq!(Kind::from_code("of a later version"), Kind::Other);
    }

    #[test]
    fn every_status_but_ok_is_an_error_and_keeps_its_retryability() {
        for number in 1..=16 {
            let status = Status::from_wire(number).unwrap();
            let error = Error::from(status);
            assert_eq!(error.is_retryable(), status.is_retryable() || status == Status::Stale, "{status:?}");
            assert_eq!(error.message(), status.to_string());
        }
    }

    #[test]
    fn an_error_survives_the_wire() {
        let mut error = Error::invalid("name too long").with_errno(Errno::NAMETOOLONG);
        error.fields.insert("name".to_owned(), "x".to_owned());
        let back = Error::from(pb::Error::from(&error));
        assert_eq!(back, error);
        assert_eq!(back.field("name"), Some("x"));
        assert_eq!(back.errno(), 36);
    }

    #[test]
    fn a_refused_connection_is_retryable_and_a_missing_file_is_not() {
        assert!(Error::from(io::Error::from(io::ErrorKind::ConnectionRefused)).is_retryable());
        assert!(Error::from(Errno::CONNREFUSED).is_retryable());
        assert_eq!(Error::from(Errno::CONNREFUSED).errno(), 5);
        assert!(!Error::from(io::Error::from_raw_os_error(2)).is_retryable());
        assert_eq!(Error::from(io::Error::from_raw_os_error(2)).errno(), 2);
    }
}
