//! Parses what operators write in calls to the `Cluster` and `Maintenance` services, as etcd does: peer URLs and versions.

/// The peer URLs of a member, trimmed; `None` if there are none, or if one is neither `http` or `https` with host, port
/// and no path, nor a Unix socket.
pub(super) fn peer_urls(urls: &[String]) -> Option<Vec<String>> {
    let urls: Vec<String> = urls.iter().map(|url| url.trim().to_owned()).collect();
    (!urls.is_empty() && urls.iter().all(|url| is_peer_url(url))).then_some(urls)
}

fn is_peer_url(url: &str) -> bool {
    match url.split_once("://") {
        Some(("unix" | "unixs", _)) => true,
        Some(("http" | "https", place)) => {
            let authority = place.parse::<http::uri::Authority>();
            authority.is_ok_and(|authority| {
                !place.contains('@') && authority.port().is_some() && !authority.host().is_empty()
            })
        }
        _ => false,
    }
}

/// Whether a text is a version in etcd's form: `major.minor` or `major.minor.patch`.
pub(super) fn is_version(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    let is_number =
        |text: &&str| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<i64>().is_ok();
    matches!(numbers.len(), 2 | 3) && numbers.iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_those_that_etcd_takes() {
        let one = |url: &str| peer_urls(&[url.to_owned()]);
        for good in ["http://127.0.0.1:2380", "https://[::1]:2380", "http://a:1", "unix://socket:1"]
        {
            assert_eq!(one(good), Some(vec![good.to_owned()]), "{good}");
        }
        assert_eq!(one(" http://a:1 "), Some(vec!["http://a:1".to_owned()]));
        for bad in ["", "bad", "http://a", "http://a:1/", "http://a:1/x", "ftp://a:1", "a:1"] {
            assert_eq!(one(bad), None, "{bad}");
        }
        assert_eq!(peer_urls(&[]), None, "none at all");
        assert_eq!(peer_urls(&["http://a:1".to_owned(), "bad".to_owned()]), None);
    }

    #[test]
    fn versions_are_those_that_etcd_takes() {
        assert!(["3.6", "3.6.0", "10.20.30"].into_iter().all(is_version));
        assert!(!["", "x", "3", "3.", "3.6.0.1", "v3.6", "3.-1"].into_iter().any(is_version));
    }
}
