//! idagg's own accept script. This file alone knows its arguments, which are those of idagg's HitStore.add.

use std::fs;
use std::io::Result;
use std::process;

use crate::group::Batch;

const TAG: &[u8] = b"{idagg:0}";
const WINDOW_S: &[u8] = b"3600";
const EXACT_LIMIT: &[u8] = b"10000000";
const ENDPOINT_LIMIT: &[u8] = b"10000";

pub struct Script {
    pub text: Vec<u8>,
    pub sha: Vec<u8>, // known once Redis has it
    incarnation: Vec<u8>,
    seq: u64,
    acknowledged: String, // the last batch: its number, and what the script answered
}

impl Script {
    pub fn read(file: &str) -> Result<Script> {
        let incarnation = process::id().to_string().into_bytes();
        let (text, acknowledged) = (fs::read(file)?, "0 0 0".to_string());
        Ok(Script { text, sha: Vec::new(), incarnation, seq: 0, acknowledged })
    }

    pub fn arguments(&mut self, batch: &Batch) -> Vec<Vec<u8>> {
        self.seq += 1;
        let mut arguments: Vec<Vec<u8>> = vec![
            b"EVALSHA".to_vec(),
            self.sha.clone(),
            b"1".to_vec(),
            TAG.to_vec(),
            WINDOW_S.to_vec(),
            EXACT_LIMIT.to_vec(),
            EXACT_LIMIT.to_vec(), // of this shard, the only one
            ENDPOINT_LIMIT.to_vec(),
            b"0 1".to_vec(), // it knows no regime, and one shard
            self.incarnation.clone(),
            self.seq.to_string().into_bytes(),
            self.acknowledged.clone().into_bytes(),
            b"0".to_vec(), // further hits of ids that are known: it remembers none
            array(&batch.ids),
        ];
        arguments.extend(batch.endpoints.iter().cloned());
        arguments
    }

    /// Take the answer to the last batch: an array of the window's start, new ids, and since when it is known.
    pub fn acknowledge(&mut self, reply: &[u8]) {
        let text = String::from_utf8_lossy(reply);
        let numbers: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(':')).collect();
        self.acknowledged = format!("{} {} {}", self.seq, numbers[0], numbers[2]);
    }
}

/// A JSON array of strings.
fn array(ids: &[i64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + 12 * ids.len());
    out.push(b'[');
    for id in ids {
        out.push(b'"');
        out.extend_from_slice(itoa::Buffer::new().format(*id).as_bytes());
        out.extend_from_slice(b"\",");
    }
    *out.last_mut().expect("a batch has ids") = b']';
    out
}
