//! What a client opens connections with: a token, which is replaced by a newer one while the client runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::credential::Token;
use super::tls::Certificates;
use crate::lock::{Condvar, Mutex};

/// After a token was refused first, so long a connection waits for the one that replaces it. The file of a token is looked
/// at each second.
const RENEWAL_MAX: Duration = Duration::from_secs(3);

/// A token, and where the next one comes from. Clones share it.
#[derive(Clone)]
pub struct Credential(Arc<Shared>, Option<Certificates>);

struct Shared {
    /// For people: what the token is, with the file that it comes from. `None`: it is not replaced.
    source: Option<String>,
    state: Mutex<HeldToken>,
    replaced: Condvar,
    generation: AtomicU64,
    /// A refused token is worth waiting for the next one.
    waits: AtomicBool,
}

struct HeldToken {
    token: Arc<Token>,
    /// When a server first refused it.
    refused: Option<Instant>,
}

impl From<Token> for Credential {
    /// That token for good.
    fn from(token: Token) -> Credential {
        Credential::new(token, None)
    }
}

impl Credential {
    /// `source`: what replaces the token when it changes, for people.
    pub fn new(token: Token, source: Option<String>) -> Credential {
        let state = Mutex::new(HeldToken { token: Arc::new(token), refused: None });
        let shared = Shared {
            source,
            state,
            replaced: Condvar::new(),
            generation: AtomicU64::new(0),
            waits: AtomicBool::new(false),
        };
        Credential(Arc::new(shared), None)
    }

    /// The same, shown through TLS to servers of other machines.
    pub fn with_certificates(self, certificates: Option<Certificates>) -> Credential {
        Credential(self.0, certificates)
    }

    pub fn certificates(&self) -> Option<&Certificates> {
        self.1.as_ref()
    }

    /// The token of now, and its generation.
    pub fn token(&self) -> (Arc<Token>, u64) {
        let state = self.0.state.lock();
        (state.token.clone(), self.generation())
    }

    /// Grows with each new token: connections of another generation are not used for another request.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// From now on a refused token is waited for, if it has a source: it was good, so it is replaced.
    pub fn wait_for_renewal(&self) {
        self.0.waits.store(self.0.source.is_some(), Ordering::Relaxed);
    }

    /// From now on connections are opened with this token.
    pub fn replace(&self, token: Token) {
        let mut state = self.0.state.lock();
        *state = HeldToken { token: Arc::new(token), refused: None };
        self.0.generation.fetch_add(1, Ordering::Release);
        drop(state);
        self.0.replaced.notify_all();
    }

    /// A server has refused the token of `generation`. Return whether there is another one: if it may be replaced, wait
    /// for that, until `deadline` and no longer than `RENEWAL_MAX` after the first refusal.
    pub fn is_replaced_after(&self, generation: u64, deadline: Instant) -> bool {
        let mut state = self.0.state.lock();
        if self.generation() != generation {
            return true;
        }
        let first = *state.refused.get_or_insert_with(Instant::now);
        let until = deadline.min(first + RENEWAL_MAX);
        while self.0.waits.load(Ordering::Relaxed) && self.generation() == generation {
            if self.0.replaced.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        self.generation() != generation
    }

    /// Whether a server has refused the token of now.
    pub fn is_refused(&self) -> bool {
        self.0.state.lock().refused.is_some()
    }

    /// Why the token was refused, as far as this side can know, and what to do about it.
    pub fn explain(&self) -> String {
        let (token, _) = self.token();
        let expires = token.described().expires_unix_s;
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let (name, advice) = match &self.0.source {
            Some(source) => (source.as_str(), "the file is read again when it changes"),
            None => ("the token", "connect with another one"),
        };
        if expires != 0 && expires <= now {
            return format!("{name} has expired; {advice}");
        }
        format!("authentication failed: {name} is wrong, was revoked, or may not be used from here; {advice}")
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential {{ {:?}, generation {} }}", self.0.source, self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::credential::Secret;
    use crate::wire::pb::Claims;

    fn token(expires_unix_s: u64) -> Token {
        Secret::new([7; 32]).mint(&Claims { expires_unix_s, ..Claims::default() })
    }

    #[test]
    fn a_refused_token_is_waited_for_only_where_another_may_come() {
        assert!(!Credential::from(token(0)).is_replaced_after(0, Instant::now() + Duration::from_secs(60)));
        let renewed = Credential::new(token(0), Some("/token".into()));
        assert!(!renewed.is_replaced_after(0, Instant::now() + Duration::from_secs(60)), "it was never good");
        renewed.wait_for_renewal();
        assert!(!renewed.is_replaced_after(0, Instant::now() + Duration::from_millis(20)));
        assert!(renewed.is_refused());
        let other = renewed.clone();
        let waiting =
            std::thread::spawn(move || other.is_replaced_after(0, Instant::now() + Duration::from_secs(60)));
        renewed.replace(token(0));
        assert!(waiting.join().unwrap());
        assert!(!renewed.is_refused());
        assert_eq!(renewed.token().1, 1);
    }

    #[test]
    fn the_refusal_names_the_file_and_says_if_the_token_has_expired() {
        let from =
            |expires| Credential::new(token(expires), Some("the token in /run/token".into())).explain();
        assert_eq!(from(1), "the token in /run/token has expired; the file is read again when it changes");
        assert!(from(0).starts_with("authentication failed: the token in /run/token is wrong"));
        assert_eq!(Credential::from(token(1)).explain(), "the token has expired; connect with another one");
    }
}
