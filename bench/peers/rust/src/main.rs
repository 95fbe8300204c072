//! The service in Rust: hyper and tokio, one command to Redis for all requests that came while the last one
//! travelled. Its argument says which: "sadd", a plain SADD, or "script", idagg's own accept script.

mod group;
mod script;
mod store;

use std::convert::Infallible;
use std::env;
use std::io;
use std::sync::Arc;

use group::Group;
use hyper::header::{HeaderValue, CONNECTION, CONTENT_TYPE};
use hyper::server::conn::Http;
use hyper::service::service_fn;
use hyper::{Body, Method, Request, Response, StatusCode};
use store::{Form, Store};
use tokio::net::TcpSocket;

fn main() -> io::Result<()> {
    // Two threads cost more per request: one has to wake the other.
    tokio::runtime::Builder::new_current_thread().enable_io().event_interval(1024).build()?.block_on(serve())
}

async fn serve() -> io::Result<()> {
    let form = match env::args().nth(1).as_deref() {
        Some("sadd") => Form::Sadd,
        Some("script") => Form::script(&variable("ACCEPT_SCRIPT"))?,
        other => panic!("no such store: {other:?}"),
    };
    let group = Group::start(Store::new(variable("REDIS_SOCKET"), form));
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(format!("127.0.0.1:{}", variable("PORT")).parse().expect("a port"))?;
    let listener = socket.listen(4096)?;
    let mut http = Http::new();
    http.http1_only(true).http1_keep_alive(true).http1_writev(false).pipeline_flush(true);
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        let group = group.clone();
        let service = service_fn(move |request| answer(group.clone(), request));
        let serving = http.serve_connection(connection, service);
        tokio::spawn(async move {
            let _ = serving.await; // a client that breaks off is its own affair
        });
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

async fn answer(group: Arc<Group>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let mut response = judge(&group, &request).await;
    if request.headers().get(CONNECTION).map_or(false, |value| value == "close") {
        // hyper closes the connection, and leaves it to us to say so.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn judge(group: &Group, request: &Request<Body>) -> Response<Body> {
    if request.uri().path() != "/api/verve/accept" {
        return response(StatusCode::NOT_FOUND, "failed");
    }
    if request.method() != Method::GET {
        return response(StatusCode::METHOD_NOT_ALLOWED, "failed");
    }
    let (id, endpoint) = match parse(request.uri().query().unwrap_or("")) {
        Some(wanted) => wanted,
        None => return response(StatusCode::BAD_REQUEST, "failed"),
    };
    if group.add(id, endpoint).await {
        response(StatusCode::OK, "ok")
    } else {
        response(StatusCode::SERVICE_UNAVAILABLE, "failed")
    }
}

fn response(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The id and the endpoint, if there is one; None for a missing, repeated or bad id.
fn parse(query: &str) -> Option<(i64, Option<Vec<u8>>)> {
    let (mut id, mut endpoint) = (None, None);
    for field in query.split('&') {
        if let Some(text) = field.strip_prefix("id=") {
            if id.replace(text.parse().ok()?).is_some() {
                return None;
            }
        } else if let Some(text) = field.strip_prefix("endpoint=") {
            endpoint = Some(decode(text)?);
        }
    }
    Some((id?, endpoint))
}

/// Percent-encoding, decoded.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut decoded = parts.next()?.as_bytes().to_vec();
    for part in parts {
        decoded.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        decoded.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(decoded)
}
