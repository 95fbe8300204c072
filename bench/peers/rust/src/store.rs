//! Batches to Redis, over a Unix socket: what is sent, and whether it was done.

use std::io::{Error, ErrorKind, Result};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::group::Batch;
use crate::script::Script;

pub enum Form {
    Sadd,
    Script(Script),
}

impl Form {
    pub fn script(file: &str) -> Result<Form> {
        Ok(Form::Script(Script::read(file)?))
    }
}

pub struct Store {
    socket: String,
    form: Form,
    connection: Option<UnixStream>,
}

impl Store {
    pub fn new(socket: String, form: Form) -> Store {
        Store { socket, form, connection: None }
    }

    /// After an error it is not known what was stored, and the next batch goes over a new connection.
    pub async fn add(&mut self, batch: &Batch) -> Result<()> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let (commands, replies) = match &mut self.form {
            Form::Sadd => sadd(batch),
            Form::Script(script) => (command(&script.arguments(batch)), 1),
        };
        let reply = ask(&mut connection, &commands, replies).await?;
        if let Form::Script(script) = &mut self.form {
            script.acknowledge(&reply);
        }
        self.connection = Some(connection);
        Ok(())
    }

    async fn connect(&mut self) -> Result<UnixStream> {
        let mut connection = UnixStream::connect(&self.socket).await?;
        if let Form::Script(script) = &mut self.form {
            let load = command(&[b"SCRIPT".to_vec(), b"LOAD".to_vec(), script.text.clone()]);
            let name = ask(&mut connection, &load, 1).await?;
            script.sha = name[5..45].to_vec(); // after $40
        }
        Ok(connection)
    }
}

fn sadd(batch: &Batch) -> (Vec<u8>, usize) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let minute = now.as_secs() / 60;
    let mut out = Vec::with_capacity(64 + 20 * batch.ids.len());
    let mut digits = itoa::Buffer::new();
    begin(&mut out, b'*', batch.ids.len() + 2);
    bulk(&mut out, b"SADD");
    bulk(&mut out, format!("ids:{minute}").as_bytes());
    for id in &batch.ids {
        bulk(&mut out, digits.format(*id).as_bytes());
    }
    if batch.endpoints.is_empty() {
        return (out, 1);
    }
    begin(&mut out, b'*', batch.endpoints.len() + 2);
    bulk(&mut out, b"SADD");
    bulk(&mut out, format!("endpoints:{minute}").as_bytes());
    batch.endpoints.iter().for_each(|endpoint| bulk(&mut out, endpoint));
    (out, 2)
}

fn command(arguments: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(arguments.iter().map(|argument| argument.len() + 16).sum());
    begin(&mut out, b'*', arguments.len());
    arguments.iter().for_each(|argument| bulk(&mut out, argument));
    out
}

fn bulk(out: &mut Vec<u8>, argument: &[u8]) {
    begin(out, b'$', argument.len());
    out.extend_from_slice(argument);
    out.extend_from_slice(b"\r\n");
}

fn begin(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Send commands and wait for so many replies, none of which may be an error.
async fn ask(connection: &mut UnixStream, commands: &[u8], replies: usize) -> Result<Vec<u8>> {
    connection.write_all(commands).await?;
    let mut data = Vec::with_capacity(256);
    let (mut at, mut taken) = (0, 0);
    while taken < replies {
        match end_of_reply(&data, at) {
            Some(_) if data[at] == b'-' => {
                return Err(Error::new(ErrorKind::Other, String::from_utf8_lossy(&data[at..])));
            }
            Some(end) => (at, taken) = (end, taken + 1),
            None if connection.read_buf(&mut data).await? == 0 => return Err(ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    }
    Ok(data)
}

/// Where the reply that begins at `at` ends; None while not all of it is there.
fn end_of_reply(data: &[u8], at: usize) -> Option<usize> {
    let end = at + data.get(at..)?.windows(2).position(|pair| pair == b"\r\n")?;
    let count = || std::str::from_utf8(&data[at + 1..end]).ok()?.parse().ok();
    match data[at] {
        b'*' => (0..count()?).try_fold(end + 2, |at, _| end_of_reply(data, at)),
        b'$' => Some(end + 2 + count()? + 2).filter(|end| *end <= data.len()),
        _ => Some(end + 2),
    }
}
