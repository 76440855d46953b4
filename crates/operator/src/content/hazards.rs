//! Finds mistakes that validators accept in opaque bundles: private keys, and certificates that are not
//! valid now.

use std::sync::Arc;

use satrap_certify::{Key, Timestamp};
use satrap_runtime::clock;
use x509_parser::{pem::Pem, time::ASN1Time};

/// More warnings than this are only counted.
const WARNINGS_MAX: usize = 8;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Warnings about entries that are about to be signed and copied to every edge.
pub fn hazards<'a>(entries: impl Iterator<Item = (&'a Key, &'a Arc<[u8]>)>) -> Vec<String> {
    let now_s = i64::try_from(clock::now() / NANOS_PER_SECOND).unwrap_or(i64::MAX);
    let mut found: Vec<_> =
        entries.flat_map(|(key, value)| value_hazards(key, value, now_s)).collect();
    if let Some(more) = found.len().checked_sub(WARNINGS_MAX).filter(|more| *more > 0) {
        found.truncate(WARNINGS_MAX);
        found.push(format!("{more} more of this kind"));
    }
    found
}

fn value_hazards(key: &Key, value: &[u8], now_s: i64) -> Vec<String> {
    let (name, mut found) = (super::key_text(key), Vec::new());
    // Any armor counts: a key in a form that the parser below skips is a key all the same.
    let text = String::from_utf8_lossy(value);
    let labels = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN "));
    let mut labels = labels.filter_map(|rest| rest.strip_suffix("-----"));
    if let Some(label) = labels.find(|label| label.contains("PRIVATE KEY")) {
        found.push(format!(
            "key `{name}` holds a private key ({label}), which every reader of the bundle can \
             read"
        ));
    }
    for pem in Pem::iter_from_buffer(value).map_while(Result::ok) {
        if pem.label != "CERTIFICATE" {
            continue;
        }
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&pem.contents) else {
            found.push(format!("key `{name}` holds a certificate that does not parse"));
            continue;
        };
        let (validity, subject) = (certificate.validity(), certificate.subject());
        let (starts, ends) = (validity.not_before, validity.not_after);
        if ends.timestamp() < now_s {
            found.push(format!("key `{name}`: certificate `{subject}` expired {}", day(ends)));
        } else if starts.timestamp() > now_s {
            found.push(format!(
                "key `{name}`: certificate `{subject}` is not valid before {}",
                day(starts)
            ));
        }
    }
    found
}

fn day(time: ASN1Time) -> String {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    let text = Timestamp(seconds.saturating_mul(NANOS_PER_SECOND)).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use satrap_identity::pki::WebAuthority;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn found(value: &str) -> Vec<String> {
        let (key, value) = (Key::new(b"k").unwrap(), Arc::from(value.as_bytes()));
        hazards([(&key, &value)].into_iter())
    }

    #[test]
    fn keys_and_certificates_out_of_their_time_are_named() {
        let now = clock::now();
        let then = |days: u64| now - days * 86_400 * NANOS_PER_SECOND;
        let valid = WebAuthority::create("now", now, DAY).unwrap();
        let expired = WebAuthority::create("then", then(10), DAY).unwrap();
        assert_eq!(found(valid.certificate_pem()), [""; 0]);
        assert_eq!(found("port = 1\n"), [""; 0]);
        let [one] = &found(expired.certificate_pem())[..] else { panic!("one hazard") };
        assert!(one.contains("then") && one.contains("` expired 20"), "{one}");
        let [key] = &found(&valid.key_pem())[..] else { panic!("one hazard") };
        assert!(key.contains("holds a private key (PRIVATE KEY)"), "{key}");
        let [key] = &found("# mine\n-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")[..] else {
            panic!("one hazard")
        };
        assert!(key.contains("OPENSSH"), "{key}");
        let future =
            WebAuthority::create("soon", now + 9 * 86_400 * NANOS_PER_SECOND, DAY).unwrap();
        assert!(found(future.certificate_pem())[0].contains("is not valid before 20"));
        let many = expired.certificate_pem().repeat(WARNINGS_MAX + 2);
        assert_eq!(found(&many).last().unwrap(), "2 more of this kind");
    }
}
