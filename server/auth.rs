//! API keys: `x-api-key: K` or `Authorization: Bearer K`, whichever API the route belongs to.

use http::{HeaderMap, header};
use subtle::{Choice, ConstantTimeEq};

use crate::error::{ApiError, ErrorKind};

/// Routes that answer without a key.
const OPEN_ROUTES: [&str; 4] = ["/", "/health", "/version", "/metrics"];

/// Lets a request through, or says why not. Runs before a byte of the body is read.
pub(crate) fn check(api_keys: &[String], path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    if api_keys.is_empty() || OPEN_ROUTES.contains(&path) {
        return Ok(());
    }
    let offered: Vec<&[u8]> = offered_keys(headers).collect();
    if offered.iter().all(|key| key.is_empty()) {
        return Err(ApiError::new(ErrorKind::Key, "no API key: send it as `x-api-key` or as `Authorization: Bearer`"));
    }
    if offered.iter().fold(false, |found, key| found | is_known(api_keys, key)) {
        Ok(())
    } else {
        Err(ApiError::new(ErrorKind::Key, "invalid API key"))
    }
}

/// Every key that the headers offer.
fn offered_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let plain = headers.get_all("x-api-key").iter().map(|value| value.as_bytes().trim_ascii());
    let bearer = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| bearer_token(value.as_bytes()));
    plain.chain(bearer)
}

/// The token of `Bearer token`; the scheme's case does not matter.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares with every configured key in constant time, so that neither the place of a difference nor of the key shows.
fn is_known(api_keys: &[String], offered: &[u8]) -> bool {
    api_keys.iter().fold(Choice::from(0), |found, key| found | key.as_bytes().ct_eq(offered)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_headers(headers: &[(&str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        check(&["first".into(), "second".into()], "/v1/models", &map).is_ok()
    }

    #[test]
    fn keys() {
        for (headers, expected) in [
            (&[("x-api-key", "first")][..], true),
            (&[("x-api-key", "second")], true),
            (&[("authorization", "Bearer second")], true),
            (&[("authorization", "bearer first")], true),
            (&[("authorization", "BEARER  first ")], true),
            (&[("x-api-key", "wrong"), ("authorization", "Bearer first")], true),
            (&[], false),
            (&[("x-api-key", "")], false),
            (&[("x-api-key", "firs")], false),
            (&[("x-api-key", "firstx")], false),
            (&[("authorization", "first")], false),
            (&[("authorization", "Bearer")], false),
            (&[("authorization", "Bearer ")], false),
            (&[("authorization", "Basic first")], false),
            (&[("x-api-key", "Bearer first")], false),
        ] {
            assert_eq!(check_headers(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn open_routes_and_open_servers() {
        let none = HeaderMap::new();
        assert!(check(&["k".into()], "/health", &none).is_ok());
        assert!(check(&["k".into()], "/v1/nowhere", &none).is_err());
        assert!(check(&["k".into()], "/tokenize", &none).is_err());
        assert!(check(&[], "/v1/models", &none).is_ok());
    }
}
