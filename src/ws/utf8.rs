//! UTF-8 of text messages, RFC 6455 8.1: whole, or checked as the bytes arrive.

use super::ProtocolError;

const NOT_UTF8: ProtocolError = ProtocolError::invalid_data("text is not UTF-8");

/// A whole text.
///
/// # Errors
/// 1007 when it is not UTF-8.
#[inline(always)]
pub(super) fn whole(bytes: &[u8]) -> Result<&str, ProtocolError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| NOT_UTF8)
}

/// A text that has not all arrived, of which the first `valid` bytes were checked before. Returns how many are valid now;
/// at most the three bytes of a character that was cut may lie behind them.
///
/// # Errors
/// 1007 as soon as one byte is wrong, whatever may follow.
pub(super) fn so_far(bytes: &[u8], valid: usize) -> Result<usize, ProtocolError> {
    match simdutf8::compat::from_utf8(&bytes[valid..]) {
        Ok(_) => Ok(bytes.len()),
        // Without a length, the error is only that the last character has not ended yet.
        Err(error) if error.error_len().is_none() => Ok(valid + error.valid_up_to()),
        Err(_) => Err(NOT_UTF8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds one byte after another; returns how many were taken before the error, if there is one.
    fn bytes_until_error(bytes: &[u8]) -> Option<usize> {
        let mut valid = 0;
        for end in 1..=bytes.len() {
            match so_far(&bytes[..end], valid) {
                Ok(now) => valid = now,
                Err(error) => {
                    assert_eq!(error.code, 1007);
                    return Some(end);
                }
            }
        }
        None
    }

    #[test]
    fn characters_cut_at_every_byte_pass() {
        let text = "aé€𝄞z\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}\u{d7ff}\u{e000}".repeat(9);
        assert_eq!(bytes_until_error(text.as_bytes()), None);
        assert_eq!(whole(text.as_bytes()), Ok(text.as_str()));
    }

    #[test]
    fn the_first_wrong_byte_fails_at_once() {
        let cases: [(&[u8], usize); 9] = [
            (b"ab\x80cd", 3),             // a continuation byte without a start
            (b"\xc0\xaf", 1),             // overlong: 0xc0 never occurs
            (b"\xe0\x80\x80", 2),         // overlong in three bytes
            (b"\xed\xa0\x80", 2),         // a surrogate
            (b"\xf0\x80\x80\x80", 2),     // overlong in four bytes
            (b"\xf4\x90\x80\x80", 2),     // above U+10FFFF
            (b"\xf5\x80\x80\x80", 1),     // 0xf5 never occurs
            (b"\xe2\x82a", 3),            // a character that breaks off
            (b"\xce\xba\xe1\xbd\xff", 5), // the shape of Autobahn's 6.4
        ];
        for (bytes, taken) in cases {
            assert_eq!(bytes_until_error(bytes), Some(taken), "{bytes:x?}");
            assert_eq!(whole(bytes).map_err(|error| error.code), Err(1007), "{bytes:x?}");
        }
    }

    #[test]
    fn a_character_still_open_is_no_error_yet() {
        assert_eq!(so_far(b"ab\xf0\x9d\x84", 0), Ok(2));
        assert_eq!(so_far(b"ab\xf0\x9d\x84\x9e", 2), Ok(6));
    }
}
