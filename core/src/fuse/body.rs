//! Takes a request's body apart. The kernel is trusted to mean well, not to be free of bugs: what does not parse is
//! answered with `EINVAL`.

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::operations::Reply;

/// What follows the header of one request.
pub struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    /// The next structure.
    pub fn take<T: FromBytes>(&mut self) -> Reply<T> {
        let bytes = self.bytes(size_of::<T>())?;
        T::read_from_bytes(bytes).map_err(|_| Errno::INVAL)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Reply<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The next string, without the NUL that ends it. Never empty.
    pub fn text(&mut self) -> Reply<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::INVAL)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        if text.is_empty() { Err(Errno::INVAL) } else { Ok(text) }
    }

    /// The next string as a name in a directory.
    pub fn name(&mut self) -> Reply<&'a [u8]> {
        let name = self.text()?;
        match name {
            b"." | b".." => Err(Errno::INVAL),
            _ if name.contains(&b'/') => Err(Errno::INVAL),
            _ if name.len() > super::NAME_BYTES_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuse::abi;

    #[test]
    fn names_end_at_their_nul() {
        let mut body = Body(b"one\0two\0");
        assert_eq!(body.name(), Ok(&b"one"[..]));
        assert_eq!(body.name(), Ok(&b"two"[..]));
        assert_eq!(body.name(), Err(Errno::INVAL));
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        for bytes in [&b"\0"[..], b"a/b\0", b"..\0", b".\0", b"unterminated"] {
            assert_eq!(Body(bytes).name(), Err(Errno::INVAL), "{bytes:?}");
        }
        let mut long = vec![b'x'; 256];
        long.push(0);
        assert_eq!(Body(&long).name(), Err(Errno::NAMETOOLONG));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let mut body = Body(&bytes);
            let _ = body.take::<abi::SetAttrIn>();
            let _ = body.name();
            let _ = body.take::<abi::ForgetOne>();
            let _ = body.text();
            prop_assert!(body.0.len() <= bytes.len());
        }
    }
}
