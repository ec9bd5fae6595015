use foca::{Codec as _, Header, Member};

use super::*;

mod simulation;

fn life(byte: u8, boot_count: u64) -> Incarnation {
    Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count }
}

/// Two or three members whose datagrams arrive at once.
struct Scene {
    start: Instant,
    now: Instant,
    swims: Vec<Swim>,
    /// Who does not answer any more.
    dead: Vec<usize>,
    told: Vec<(usize, Incarnation, NodeState)>,
    /// Who doubted the way to whom.
    doubts: Vec<(usize, NodeId)>,
}

impl Scene {
    fn new(count: u8) -> Self {
        let start = Instant::now();
        let swims = (0..count).map(|at| Swim::new(start, life(at, 1), u64::from(at)));
        let swims = swims.collect();
        let (dead, told, doubts) = (Vec::new(), Vec::new(), Vec::new());
        let mut scene = Self { start, now: start, swims, dead, told, doubts };
        for here in 0..count {
            for there in (0..count).filter(|there| *there != here) {
                scene.give(usize::from(here), SwimEvent::LinkUp(life(there, 1), Duration::ZERO));
            }
        }
        scene
    }

    fn give(&mut self, at: usize, event: SwimEvent) {
        let mut events = vec![(at, event)];
        while let Some((at, event)) = events.pop() {
            if self.dead.contains(&at) {
                continue;
            }
            for action in self.swims[at].on(self.now, event) {
                match action {
                    SwimAction::Send { to, datagram } => {
                        let from = life(u8::try_from(at).unwrap(), 1);
                        let to = usize::from(to.as_bytes()[0]);
                        events.push((to, SwimEvent::Datagram(from, datagram)));
                    }
                    SwimAction::Became(life, state) => self.told.push((at, life, state)),
                    SwimAction::ProbeAllPaths(node) => self.doubts.push((at, node)),
                    SwimAction::Forgot(_) => {}
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let living = (0..self.swims.len()).filter(|at| !self.dead.contains(at));
            let next = living.filter_map(|at| Some((self.swims[at].wake_at()?, at))).min();
            match next.filter(|(wake, _)| *wake <= end) {
                Some((wake, at)) => {
                    self.now = self.now.max(wake);
                    self.give(at, SwimEvent::Tick);
                }
                None => break,
            }
        }
        self.now = end;
    }

    /// When `at` was told this of `of`, counted from `since`.
    fn told_after(&mut self, since: Instant, news: (usize, Incarnation, NodeState)) -> Duration {
        while !self.told.contains(&news) {
            assert!(self.now < since + Duration::from_secs(10), "{:?}", self.told);
            self.run(Duration::from_millis(1));
        }
        self.now - since
    }
}

fn header(from: Incarnation, to: Incarnation, message: Message<Identity>) -> Header<Identity> {
    let (src, dst) = (Identity::new(from), Identity::new(to));
    Header { src, src_incarnation: 0, dst, message }
}

fn packet(header: &Header<Identity>, news: &[Member<Identity>]) -> Bytes {
    let mut bytes = Vec::new();
    PostcardCodec.encode_header(header, &mut bytes).unwrap();
    bytes.extend_from_slice(&u16::try_from(news.len()).unwrap().to_be_bytes());
    news.iter().for_each(|member| PostcardCodec.encode_member(member, &mut bytes).unwrap());
    bytes.into()
}

#[test]
fn a_hint_has_the_dead_noticed_sooner() {
    let mut scene = Scene::new(3);
    scene.run(Duration::from_secs(1));
    scene.dead.push(2);
    let since = scene.now;
    scene.give(0, SwimEvent::LinkDown(life(2, 1)));
    let patience = PERIOD + suspicion(2) + Duration::from_millis(20);
    let took = scene.told_after(since, (0, life(2, 1), NodeState::Down));
    assert!(took <= patience, "{took:?}");
    let took = scene.told_after(since, (1, life(2, 1), NodeState::Down));
    assert!(took <= patience, "{took:?}");
}

#[test]
fn a_hint_about_the_living_changes_nothing() {
    let mut scene = Scene::new(3);
    scene.run(Duration::from_secs(1));
    scene.told.clear();
    scene.give(0, SwimEvent::Hint(life(2, 1).node));
    scene.run(Duration::from_secs(1));
    // Without a link, the third member answers for it.
    scene.give(0, SwimEvent::LinkDown(life(2, 1)));
    scene.run(Duration::from_secs(10));
    assert_eq!(scene.told, []);
    scene.give(0, SwimEvent::Hint(life(9, 1).node));
}

#[test]
fn the_last_other_member_is_noticed_too() {
    let mut scene = Scene::new(2);
    scene.run(Duration::from_secs(1));
    scene.dead.push(1);
    let since = scene.now;
    let took = scene.told_after(since, (0, life(1, 1), NodeState::Down));
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(scene.start < since);
}

/// Who has another way to it must have tried that one before.
#[test]
fn the_way_is_doubted_before_the_member_is() {
    let mut scene = Scene::new(2);
    scene.run(Duration::from_secs(1));
    assert_eq!(scene.doubts, []);
    scene.dead.push(1);
    let since = scene.now;
    while scene.doubts.is_empty() {
        scene.run(Duration::from_millis(1));
    }
    assert_eq!(scene.doubts, [(0, life(1, 1).node)]);
    let doubted = scene.now - since;
    let suspected = scene.told_after(since, (0, life(1, 1), NodeState::Suspect));
    assert!(doubted <= PERIOD + ROUND_TRIP + Duration::from_millis(1), "{doubted:?}");
    assert!(suspected > doubted, "{suspected:?}");
    // While it is suspected, each question goes on all paths.
    let before = scene.doubts.len();
    scene.told_after(since, (0, life(1, 1), NodeState::Down));
    assert!(scene.doubts.len() >= before + 4, "{:?}", scene.doubts);
}

#[test]
fn garbage_and_liars_are_refused() {
    let mut scene = Scene::new(2);
    let before = scene.told.clone();
    let good = packet(&header(life(1, 1), life(0, 1), Message::Gossip), &[]);
    let mut long = good.to_vec();
    long.resize(packet::MAX_PACKET + 1, 0);
    let mut counted = good.to_vec();
    let last = counted.len() - 2..;
    counted[last].copy_from_slice(&u16::MAX.to_be_bytes());
    let bad: [Bytes; 8] = [
        Bytes::new(),
        Bytes::from_static(&[0]),
        vec![0xff; 600].into(),
        good.slice(..good.len() - 1),
        long.into(),
        counted.into(),
        // Somebody else's name, and another life.
        packet(&header(life(5, 1), life(0, 1), Message::Gossip), &[]),
        packet(&header(life(1, 2), life(0, 1), Message::Gossip), &[]),
    ];
    for (at, datagram) in bad.into_iter().enumerate() {
        let refused = scene.swims[0].refused();
        scene.give(0, SwimEvent::Datagram(life(1, 1), datagram));
        assert_eq!(scene.swims[0].refused(), refused + 1, "{at}");
    }
    assert_eq!(scene.told, before);
    let refused = scene.swims[0].refused();
    scene.give(0, SwimEvent::Datagram(life(1, 1), good));
    assert_eq!(scene.swims[0].refused(), refused);
}

#[test]
fn a_ghost_is_not_heard() {
    let mut scene = Scene::new(2);
    let mut reborn = Swim::new(scene.now, life(1, 2), 7);
    let greeting = reborn.on(scene.now, SwimEvent::LinkUp(life(0, 1), Duration::ZERO));
    scene.give(0, SwimEvent::LinkDown(life(1, 1)));
    scene.give(0, SwimEvent::LinkUp(life(1, 2), Duration::ZERO));
    for action in greeting {
        if let SwimAction::Send { datagram, .. } = action {
            scene.swims[0].on(scene.now, SwimEvent::Datagram(life(1, 2), datagram));
        }
    }
    assert_eq!(scene.swims[0].told[&life(1, 2).node], (life(1, 2), NodeState::Alive));
    let ghost = packet(&header(life(1, 1), life(0, 1), Message::Ping(1)), &[]);
    let answer = scene.swims[0].on(scene.now, SwimEvent::Datagram(life(1, 1), ghost));
    assert_eq!((answer, scene.swims[0].refused()), (Vec::new(), 1));
}

#[test]
fn made_up_members_are_bounded() {
    let mut scene = Scene::new(2);
    let stranger = |number: u16| {
        let mut digest = [200; 32];
        digest[..2].copy_from_slice(&number.to_be_bytes());
        let life = Incarnation { node: NodeId::from_bytes(digest), boot_count: u64::from(number) };
        Member::new(Identity::new(life), 0, State::Alive)
    };
    let header = header(life(1, 1), life(0, 1), Message::Gossip);
    for chunk in 0..1000 {
        let news: Vec<_> = (0..10).map(|at| stranger(chunk * 10 + at)).collect();
        scene.swims[0].on(scene.now, SwimEvent::Datagram(life(1, 1), packet(&header, &news)));
    }
    let swim = &scene.swims[0];
    assert!(swim.told.len() <= MAX_MEMBERS && swim.told.len() > MAX_MEMBERS - 20);
    assert_eq!(swim.foca.iter_membership_state().len(), swim.told.len());
    assert!(swim.refused() > 800);
    // One node that dies again and again takes no more room.
    let timers = swim.timers.len();
    for boot_count in 0..1000 {
        let dead = Identity::new(Incarnation { boot_count, ..stranger(0).id().life });
        let news = [Member::new(dead, 0, State::Down)];
        scene.swims[0].on(scene.now, SwimEvent::Datagram(life(1, 1), packet(&header, &news)));
    }
    let swim = &scene.swims[0];
    assert!(swim.timers.len() <= timers + 1, "{} and {timers}", swim.timers.len());
    assert!(swim.forget.len() <= MAX_MEMBERS);
}

#[test]
fn the_dead_are_forgotten_in_the_end() {
    let mut scene = Scene::new(2);
    scene.run(Duration::from_secs(1));
    scene.dead.push(1);
    let since = scene.now;
    scene.told_after(since, (0, life(1, 1), NodeState::Down));
    scene.give(0, SwimEvent::LinkDown(life(1, 1)));
    // An hour awake, looked at twice a second.
    for _ in 0..7300 {
        scene.run(Duration::from_millis(500));
    }
    assert!(scene.swims[0].told.is_empty() && scene.swims[0].answers.is_empty());
    assert_eq!(scene.swims[0].foca.iter_membership_state().len(), 0);
}

#[test]
fn a_later_life_then_leaving_then_coming_back_counts() {
    use foca::Identity as _;
    let first = Identity::new(life(1, 1));
    let back = first.renew().unwrap();
    let leaving = Identity { leaving: true, ..first };
    let reborn = Identity::new(life(1, 2));
    let order = [first, back, leaving, reborn];
    for (at, lower) in order.iter().enumerate() {
        for higher in &order[at + 1..] {
            assert!(higher.win_addr_conflict(lower) && !lower.win_addr_conflict(higher));
        }
    }
    assert_eq!(leaving.renew(), None);
    assert_eq!(Identity { rejoin: u32::MAX, ..first }.renew(), None);
}
