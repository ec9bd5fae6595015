//! Packets of the protocol, as foca writes them: read before foca does, so that it gets none that
//! lies about its sender or names too many strangers; and written where foca has no words for what
//! is wanted.

use bytes::{Buf, BufMut as _, Bytes};
use foca::{Codec as _, Header, Member, Message, PostcardCodec, ProbeNumber};
use planaria_config::NodeId;

use super::identity::Identity;

/// The longest packet. Fits into any datagram.
pub const MAX_PACKET: usize = 1024;

/// What a packet says.
pub(super) struct Packet {
    pub(super) header: Header<Identity>,
    /// The nodes that it has news about.
    pub(super) about: Vec<NodeId>,
}

/// Reads all of a packet; `None` when it is none.
pub(super) fn read(mut data: &[u8]) -> Option<Packet> {
    if data.len() > MAX_PACKET {
        return None;
    }
    let header = PostcardCodec.decode_header(&mut data).ok()?;
    let mut about = Vec::new();
    if data.has_remaining() {
        let updates = data.try_get_u16().ok()?;
        for _ in 0..updates {
            let member: Member<Identity> = PostcardCodec.decode_member(&mut data).ok()?;
            about.push(member.id().life.node);
        }
    }
    (!data.has_remaining()).then_some(Packet { header, about })
}

/// The header alone of a packet that this node wrote.
pub(super) fn header(mut data: &[u8]) -> Option<Header<Identity>> {
    PostcardCodec.decode_header(&mut data).ok()
}

/// A question to `to`, with one piece of news if there is one. The sender's SWIM incarnation is not
/// known out here; the lowest one says no more than that it lives.
pub(super) fn question(
    from: Identity,
    to: Identity,
    message: Message<Identity>,
    news: Option<&Member<Identity>>,
) -> Option<Bytes> {
    let header = Header { src: from, src_incarnation: 0, dst: to, message };
    let mut packet = Vec::with_capacity(256);
    PostcardCodec.encode_header(&header, &mut packet).ok()?;
    packet.put_u16(u16::from(news.is_some()));
    if let Some(member) = news {
        PostcardCodec.encode_member(member, &mut packet).ok()?;
    }
    Some(packet.into())
}

/// The number of a direct question.
pub(super) const fn ping_number(message: &Message<Identity>) -> Option<ProbeNumber> {
    match message {
        Message::Ping(number) => Some(*number),
        _ => None,
    }
}
