use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use adit_lab::Host;
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Packet, QTYPE, ResourceRecord, TYPE};

use super::on;

/// Answers questions for an IPv4 address by what is `known` then.
pub fn serve_names_by(host: &Host, at: &str, known: impl Fn(&str) -> String + Send + 'static) {
    let socket = on(host, || UdpSocket::bind(at).unwrap());
    // It ends with the test's process.
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, asker)) = socket.recv_from(&mut buffer) {
            let Ok(asked) = Packet::parse(&buffer[..len]) else { continue };
            let question = asked.questions[0].clone();
            let address = known(&question.qname.to_string());
            let mut reply = Packet::new_reply(asked.id());
            if question.qtype == QTYPE::TYPE(TYPE::A) {
                let address = u32::from(address.parse::<Ipv4Addr>().unwrap());
                let data = RData::A(A { address });
                reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 30, data));
            }
            reply.questions.push(question);
            socket.send_to(&reply.build_bytes_vec().unwrap(), asker).unwrap();
        }
    });
}
