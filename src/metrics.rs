//! Metrics over HTTP/1.1 on loopback, for a local Prometheus agent: `GET /metrics` and nothing else, one connection at a
//! time, each with little time and few bytes.

use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weighhouse_shared::telemetry::LoopbackAddress;

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request, in bytes.
const MAX_REQUEST_LEN: usize = 8 << 10;

/// Listens; where, as the port may be 0.
pub async fn listen(address: LoopbackAddress) -> Result<(TcpListener, SocketAddr)> {
    let address = SocketAddr::from(address);
    let taken =
        || format!("cannot serve metrics on {address}; another program may use that port: change `metrics`");
    let listener = TcpListener::bind(address).await.with_context(taken)?;
    let address = listener.local_addr().with_context(taken)?;
    Ok((listener, address))
}

/// Answers with what `text` says at that moment. Never returns; dropping the future ends it.
pub async fn serve(listener: TcpListener, text: impl Fn() -> String) -> std::convert::Infallible {
    loop {
        let Ok((mut connection, _)) = listener.accept().await else {
            // The system has no descriptors left; others may give some back.
            tokio::time::sleep(PATIENCE).await;
            continue;
        };
        let exchange = async {
            let answer = answer(&read_head(&mut connection).await, &text);
            connection.write_all(answer.as_bytes()).await?;
            connection.shutdown().await
        };
        // Whoever is slow or gone gets nothing; the daemon's work does not depend on it.
        let _ = tokio::time::timeout(PATIENCE, exchange).await;
    }
}

/// What arrived up to the empty line that ends a request's head, or as much as is read of a longer one.
async fn read_head(connection: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while head.len() < MAX_REQUEST_LEN && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.read(&mut part).await {
            Ok(0) | Err(_) => break,
            Ok(read) => head.extend_from_slice(&part[..read]),
        }
    }
    head
}

/// The whole answer to a request's head.
fn answer(head: &[u8], text: impl Fn() -> String) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, kind, body) = match line {
        b"GET /metrics HTTP/1.1" | b"GET /metrics HTTP/1.0" if head.ends_with(b"\r\n\r\n") => {
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text())
        }
        _ => ("404 Not Found", "text/plain; charset=utf-8", "there is only GET /metrics\n".to_owned()),
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_get_of_metrics_is_answered_with_them() {
        let answered = |head: &str| answer(head.as_bytes(), || "m 1\n".into());
        let good = answered("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(
            good.starts_with("HTTP/1.1 200 OK\r\n")
                && good.ends_with("\r\nContent-Length: 4\r\nConnection: close\r\n\r\nm 1\n")
        );
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "POST /metrics HTTP/1.1\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost: x",
            "GET /metrics/../x HTTP/1.1\r\n\r\n",
            "\u{0}",
            "",
        ] {
            assert!(answered(bad).starts_with("HTTP/1.1 404"), "{bad:?}");
        }
    }
}
