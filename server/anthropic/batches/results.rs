//! The results of a batch as a body that is read as it is sent.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream;
use http::{HeaderValue, header};

/// Bytes read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// The file as it is.
pub(super) fn respond(path: PathBuf) -> io::Result<Response> {
    let file = File::open(path)?;
    let pieces = stream::try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE_BYTES];
            let len = file.read(&mut piece)?;
            piece.truncate(len);
            Ok::<_, io::Error>((piece, file))
        });
        let (piece, file) = read.await.map_err(io::Error::other)??;
        Ok::<_, io::Error>((!piece.is_empty()).then_some((Bytes::from(piece), file)))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-jsonl"));
    Ok(response)
}
