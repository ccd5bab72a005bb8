//! Parameters of a query string, encoded as browsers do it (the URL standard's `application/x-www-form-urlencoded`).

use std::borrow::Cow;

/// Bytes of the longest user id, decoded.
pub const USER_ID_BYTES_MAX: usize = 256;

/// Why a query names no user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UserIdError {
    /// No such parameter, or an empty one.
    #[error("Missing user_id")]
    Missing,
    /// Above [`USER_ID_BYTES_MAX`].
    #[error("user_id above 256 bytes")]
    TooLong,
    /// Other bytes than UTF-8 behind the percent signs.
    #[error("user_id is not UTF-8")]
    NotUtf8,
}

/// The user id of a query: the first parameter `user_id`, decoded.
///
/// # Errors
/// See [`UserIdError`].
pub fn user_id(query: Option<&str>) -> Result<Cow<'_, str>, UserIdError> {
    let id = query.and_then(|query| param(query, "user_id")).ok_or(UserIdError::Missing)?;
    let id = id.map_err(|NotUtf8| UserIdError::NotUtf8)?;
    match id.len() {
        0 => Err(UserIdError::Missing),
        1..=USER_ID_BYTES_MAX => Ok(id),
        _ => Err(UserIdError::TooLong),
    }
}

/// A value whose percent-encoding hides bytes that are no UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not UTF-8")]
pub struct NotUtf8;

/// The first parameter of that name, decoded; empty when it has no `=`.
///
/// Unlike the usual decoders, this one puts no U+FFFD in the place of bytes that are not UTF-8: two ids that differ must
/// not become one.
pub fn param<'a>(query: &'a str, name: &str) -> Option<Result<Cow<'a, str>, NotUtf8>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key).as_deref() == Ok(name)).then(|| decode(value))
    })
}

/// `%XX` is a byte, `+` a space; a percent sign that starts no such pair stands for itself.
fn decode(encoded: &str) -> Result<Cow<'_, str>, NotUtf8> {
    if !encoded.contains(['%', '+']) {
        return Ok(Cow::Borrowed(encoded));
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        decoded.push(match (first, behind) {
            (b'+', _) => b' ',
            (b'%', [high, low, behind @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = behind;
                    high << 4 | low
                }
                _ => b'%',
            },
            (other, _) => *other,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| NotUtf8)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(query: &str) -> Result<String, UserIdError> {
        user_id(Some(query)).map(Cow::into_owned)
    }

    #[test]
    fn ids_as_browsers_encode_them() {
        for (query, expected) in [
            ("user_id=alice", "alice"),
            ("a=b&user_id=alice&user_id=bob", "alice"),
            ("user_id=a+b%20c%2Bd%26e%3Df", "a b c+d&e=f"),
            ("user_id=J%C3%BCrgen%F0%9D%84%9E", "Jürgen𝄞"),
            ("user_id=%c3%bc", "ü"),
            ("user_id=ü", "ü"),
            ("user_id=a=b", "a=b"),
            ("user%5Fid=x", "x"),
            ("user_id=100%&x", "100%"),
            ("user_id=%4", "%4"),
            ("user_id=%zz%+1", "%zz% 1"),
            ("%ff=1&user_id=x", "x"),
            ("user_id=%00", "\0"),
        ] {
            assert_eq!(id(query).as_deref(), Ok(expected), "{query}");
        }
        assert!(matches!(user_id(Some("user_id=plain")), Ok(Cow::Borrowed("plain"))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        /// Method: queries with many escapes, whole and broken, against the usual decoder, which puts U+FFFD where
        /// ours refuses.
        #[test]
        fn decodes_as_the_url_standard_says(
            value in "(%[c-f][0-9a-f]%[89ab][0-9A-F]|%[0-7][0-9a-f]|[%+=?aü4]|%[a-z]){0,12}",
        ) {
            let query = format!("a=b&user_id={value}&user_id=z");
            let theirs = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "user_id");
            let theirs = theirs.expect("it is there").1;
            match param(&query, "user_id").expect("it is there") {
                Ok(ours) => prop_assert_eq!(ours, theirs),
                Err(NotUtf8) => prop_assert!(theirs.contains(char::REPLACEMENT_CHARACTER)),
            }
        }
    }

    #[test]
    fn no_user() {
        assert_eq!(user_id(None), Err(UserIdError::Missing));
        for query in ["", "user_id", "user_id=", "user_id=&user_id=bob", "User_id=x", "xuser_id=x", "user_id%3Dx"] {
            assert_eq!(id(query), Err(UserIdError::Missing), "{query}");
        }
        for query in ["user_id=%ff", "user_id=%C3", "user_id=%ED%A0%80", "user_id=a%80"] {
            assert_eq!(id(query), Err(UserIdError::NotUtf8), "{query}");
        }
    }

    #[test]
    fn the_limit_counts_decoded_bytes() {
        assert_eq!(id(&format!("user_id={}", "%41".repeat(256))), Ok("A".repeat(256)));
        assert_eq!(id(&format!("user_id={}", "A".repeat(257))), Err(UserIdError::TooLong));
        assert_eq!(id(&format!("user_id={}", "%C3%BC".repeat(129))), Err(UserIdError::TooLong));
    }
}
