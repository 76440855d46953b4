//! gRPC calls straight on HTTP/2, so that the client costs as little as possible and the same for
//! both systems.

use std::{net::SocketAddr, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use http::{Method, Request, Uri};
use prost::Message;
use satrap_runtime::coalesce::Coalesce;
use tokio::{net::TcpStream, time::timeout};

use super::Bench;

/// Bound on connecting and on the HTTP/2 handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// The driver of a connection; poll it beside the calls on it.
pub type Driver = client::Connection<Coalesce<TcpStream>, Bytes>;

/// One connection. Clones share it.
#[derive(Clone)]
pub struct Channel {
    send: client::SendRequest<Bytes>,
    authority: String,
}

/// One message in its gRPC frame.
#[must_use]
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("benchmark messages are small"));
    message.encode(&mut frame).expect("the buffer has room");
    frame.freeze()
}

impl Channel {
    /// Connects.
    ///
    /// # Errors
    ///
    /// If no process listens there.
    pub async fn connect(address: SocketAddr) -> Bench<(Self, Driver)> {
        let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        tcp.set_nodelay(true)?;
        let mut builder = client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (send, driver) =
            timeout(CONNECT_TIMEOUT, builder.handshake(Coalesce::new(tcp))).await??;
        Ok((Self { send, authority: address.to_string() }, driver))
    }

    fn request(&self, path: &str) -> Bench<Request<()>> {
        let uri: Uri = format!("http://{}{path}", self.authority).parse()?;
        let request = Request::builder().method(Method::POST).uri(uri);
        Ok(request.header("content-type", "application/grpc").header("te", "trailers").body(())?)
    }

    /// Sends one framed message, ends the request, and returns the one message of the answer.
    ///
    /// # Errors
    ///
    /// If the call failed, with its gRPC status.
    pub async fn call(&self, path: &str, message: Bytes) -> Bench<Bytes> {
        let mut send = self.send.clone().ready().await?;
        let (response, mut body) = send.send_request(self.request(path)?, false)?;
        body.send_data(message, true)?;
        let response = response.await?;
        check(response.headers())?;
        let mut body = response.into_body();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.extend_from_slice(&chunk);
        }
        if let Some(trailers) = body.trailers().await? {
            check(&trailers)?;
        }
        Ok(if answer.len() >= 5 { answer.split_off(5).freeze() } else { Bytes::new() })
    }

    /// As [`Self::call`], with messages.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub async fn unary<R: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
    ) -> Bench<R> {
        Ok(R::decode(self.call(path, frame(request)).await?)?)
    }

    /// Opens a stream in both directions.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub async fn stream(&self, path: &str) -> Bench<(SendStream<Bytes>, client::ResponseFuture)> {
        let mut send = self.send.clone().ready().await?;
        let (response, body) = send.send_request(self.request(path)?, false)?;
        Ok((body, response))
    }
}

fn check(headers: &http::HeaderMap) -> Bench<()> {
    match headers.get("grpc-status").map(|status| status.as_bytes()) {
        None | Some(b"0") => Ok(()),
        Some(status) => {
            let text = headers.get("grpc-message").and_then(|text| text.to_str().ok());
            Err(format!("gRPC {}: {}", status.escape_ascii(), text.unwrap_or("")).into())
        }
    }
}

/// Cuts what arrives on a stream into messages.
pub struct Incoming {
    body: RecvStream,
    held: BytesMut,
}

impl Incoming {
    /// The messages of `body`.
    #[must_use]
    pub fn new(body: RecvStream) -> Self {
        Self { body, held: BytesMut::new() }
    }

    /// The next message; none at the end.
    ///
    /// # Errors
    ///
    /// If the stream failed.
    pub async fn next<R: Message + Default>(&mut self) -> Bench<Option<R>> {
        loop {
            if let Some(length) = self.held.get(1..5) {
                let length = u32::from_be_bytes(length.try_into()?) as usize;
                if self.held.len() >= 5 + length {
                    let message = self.held.split_to(5 + length).freeze().slice(5..);
                    return Ok(Some(R::decode(message)?));
                }
            }
            let Some(chunk) = self.body.data().await else {
                if let Some(trailers) = self.body.trailers().await? {
                    check(&trailers)?;
                }
                return Ok(None);
            };
            let chunk = chunk?;
            self.body.flow_control().release_capacity(chunk.len())?;
            self.held.extend_from_slice(&chunk);
        }
    }
}

/// Sends a message on a stream once the peer takes it.
///
/// # Errors
///
/// If the stream failed.
pub async fn send(stream: &mut SendStream<Bytes>, message: Bytes) -> Bench<()> {
    let mut rest = message;
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let granted = granted.ok_or("the stream is closed")??;
        stream.send_data(rest.split_to(granted.min(rest.len())), false)?;
    }
    Ok(())
}
