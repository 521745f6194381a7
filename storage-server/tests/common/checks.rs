//! Comparisons that say where.

/// Both images are equal.
pub fn same_image(expected: &[u8], found: &[u8]) {
    assert_eq!(expected.len(), found.len(), "sizes differ");
    let differs = expected.iter().zip(found).position(|(a, b)| a != b);
    assert_eq!(differs, None, "images differ at this byte");
}
