//! Close codes and the payload of a Close frame, RFC 6455 5.5.1 and 7.4.

use tungstenite::protocol::frame::coding::CloseCode;

use super::ProtocolError;

/// The purpose of the connection is fulfilled.
pub const NORMAL: u16 = 1000;
/// The endpoint goes away.
pub const GOING_AWAY: u16 = 1001;
/// The peer broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// The peer sent a kind of data that is not taken here.
pub const UNSUPPORTED_DATA: u16 = 1003;
/// The peer sent text that is not UTF-8.
pub const INVALID_DATA: u16 = 1007;
/// The peer sent a message above the limit.
pub const TOO_BIG: u16 = 1009;

/// Reads the unmasked payload of a client's Close frame: nothing, or a code and a reason.
///
/// # Errors
/// 1002 for a payload of one byte or a code that must not be sent, 1007 for a reason that is not UTF-8.
pub fn parse(payload: &[u8]) -> Result<Option<(u16, &str)>, ProtocolError> {
    match payload {
        [] => Ok(None),
        // RFC 6455 5.5.1: if there is a body, its first two bytes are the code.
        [_] => Err(ProtocolError::violation("close payload of one byte")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(ProtocolError::violation("close code that must not be sent"));
            }
            let reason = simdutf8::basic::from_utf8(reason)
                .map_err(|_| ProtocolError::invalid_data("close reason is not UTF-8"))?;
            Ok(Some((code, reason)))
        }
    }
}

/// Whether a Close frame may carry this code: those of RFC 6455 7.4.1 and of the IANA registry that are not reserved, and
/// 3000 to 4999 (7.4.2).
pub fn may_be_sent(code: u16) -> bool {
    // IANA registered 1014 (bad gateway) after RFC 6455; tungstenite doesn't know it.
    code == 1014 || CloseCode::from(code).is_allowed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_may_be_sent() {
        let ranges = [1000..=1003, 1007..=1014, 3000..=4999];
        for code in 0..=u16::MAX {
            assert_eq!(may_be_sent(code), ranges.iter().any(|range| range.contains(&code)), "{code}");
        }
    }

    #[test]
    fn payloads() {
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(b"\x03\xe8"), Ok(Some((1000, ""))));
        assert_eq!(parse("\u{3}\u{e}bye".as_bytes()).map_err(|error| error.code), Err(1002));
        assert_eq!(parse(b"\x0f\xa1bye"), Ok(Some((4001, "bye"))));
        assert_eq!(parse(b"\x03").map_err(|error| error.code), Err(1002));
        assert_eq!(parse(b"\x03\xed").map_err(|error| error.code), Err(1002));
        assert_eq!(parse(b"\x03\xe8\xff").map_err(|error| error.code), Err(1007));
    }
}
