//! What answers requests: the site, the counter's HTTP side, the admin listener.

use std::task::{Context, Poll};

use super::Response;
use crate::http::request::Request;

/// What answers requests.
///
/// ```text
///   Request --admit--> Admitted --start--> Pending --poll_response--> Response
///              |                    |
///              +---> Response       +---> Response        (known at once)
/// ```
///
/// A request is admitted when its head is whole, and started once its body is. Several requests of one
/// client may be started before the first is answered. What is dropped on the way is given up.
pub trait Service: 'static {
    /// A request that will be started, once its body is whole.
    type Admitted: Unpin;
    /// A started request on the way to its answer.
    type Pending: Unpin;
    /// What other threads tell it.
    type Message: Send + 'static;

    /// Decides what is to be done. Nothing happens yet: the body may still turn out malformed.
    ///
    /// # Errors
    /// The answer, if nothing is to be done.
    fn admit(&self, request: &Request<'_>) -> Result<Self::Admitted, Response>;

    /// Does what was decided.
    ///
    /// # Errors
    /// The answer, if it is known at once.
    fn start(&self, admitted: Self::Admitted) -> Result<Self::Pending, Response>;

    /// The answer, once it is ready. Not called again after that.
    fn poll_response(
        &self,
        pending: &mut Self::Pending,
        context: &mut Context<'_>,
    ) -> Poll<Response>;

    /// Takes a message from another thread.
    fn on_message(&self, message: Self::Message);

    /// Ends its own waits whose time is up. Called several times in each of its shortest deadlines.
    fn expire(&self) {}
}
