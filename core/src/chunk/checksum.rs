//! CRC32C of pages, of prefixes that grow, and of whole chunks out of their pages' checksums.

use std::sync::LazyLock;

use crate::types::PAGE_BYTES;

/// Checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Checksum of a prefix with checksum `crc`, followed by `bytes`.
pub fn extend(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new_with_init_state(
        crc_fast::CrcAlgorithm::Crc32Iscsi,
        u64::from(crc ^ 0xffff_ffff),
    );
    digest.update(bytes);
    digest.finalize() as u32
}

/// Checksum of A ‖ B from those of A and of B, which has `length` bytes.
pub fn combine(first: u32, second: u32, length: usize) -> u32 {
    if length == PAGE_BYTES as usize {
        return PAGE_SHIFT.apply(first) ^ second;
    }
    crc_fast::checksum_combine(
        crc_fast::CrcAlgorithm::Crc32Iscsi,
        u64::from(first),
        u64::from(second),
        length as u64,
    ) as u32
}

/// Checksum of `length` zeros.
pub fn zeros(length: usize) -> u32 {
    if length == PAGE_BYTES as usize { *ZERO_PAGE } else { crc32c(&vec![0; length]) }
}

static ZERO_PAGE: LazyLock<u32> = LazyLock::new(|| crc32c(&[0; PAGE_BYTES as usize]));
static PAGE_SHIFT: LazyLock<Shift> = LazyLock::new(Shift::of_a_page);

/// What a page of zeros after it does to a checksum: linear, so four tables of one byte each.
struct Shift([[u32; 256]; 4]);

impl Shift {
    fn of_a_page() -> Shift {
        let mut tables = [[0; 256]; 4];
        for (place, table) in tables.iter_mut().enumerate() {
            for (byte, entry) in table.iter_mut().enumerate() {
                *entry = crc_fast::checksum_combine(
                    crc_fast::CrcAlgorithm::Crc32Iscsi,
                    (byte as u64) << (8 * place),
                    0,
                    u64::from(PAGE_BYTES),
                ) as u32;
            }
        }
        Shift(tables)
    }

    fn apply(&self, crc: u32) -> u32 {
        let bytes = crc.to_le_bytes();
        (0..4).fold(0, |sum, place| sum ^ self.0[place][bytes[place] as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n * 31 % 251) as u8).collect()
    }

    #[test]
    fn a_prefix_extends_to_the_checksum_of_the_whole() {
        let all = bytes(5000);
        for cut in [0, 1, 7, 64, 4096, 4999, 5000] {
            assert_eq!(extend(crc32c(&all[..cut]), &all[cut..]), crc32c(&all));
            assert_eq!(combine(crc32c(&all[..cut]), crc32c(&all[cut..]), 5000 - cut), crc32c(&all));
        }
    }

    #[test]
    fn pages_combine_to_the_checksum_of_the_whole() {
        let page = PAGE_BYTES as usize;
        let all = bytes(3 * page);
        let sum = all.chunks(page).fold(0, |sum, piece| combine(sum, crc32c(piece), piece.len()));
        assert_eq!(sum, crc32c(&all));
        assert_eq!(zeros(page), crc32c(&vec![0; page]));
        assert_eq!(zeros(10), crc32c(&[0; 10]));
    }
}
