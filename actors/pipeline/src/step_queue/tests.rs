use super::*;

fn id(sequence: u128) -> SequenceId {
    SequenceId::from_bits(sequence)
}

/// Layers of a first stage, and of a later one.
const FIRST: LayerRange = match LayerRange::half_open(0, 4) {
    Some(layers) => layers,
    None => unreachable!(),
};
const LATER: LayerRange = match LayerRange::half_open(4, 8) {
    Some(layers) => layers,
    None => unreachable!(),
};

fn queue_of(layers: LayerRange) -> Queue {
    let mut queue = Queue::default();
    queue.adopt(layers, 1);
    queue
}

/// A piece of a prompt; `sample` marks its end.
fn prompt(sequence: u128, range: std::ops::Range<u32>, sample: bool) -> Work {
    let open = (range.start == 0).then(|| Box::new(SamplingParams::greedy()));
    let segment = Segment {
        sequence: id(sequence),
        layers: FIRST,
        start: range.start,
        tokens: range.collect(),
        hidden: None,
        open,
        prefix: Vec::new(),
        sample,
        absorb: false,
    };
    Work { segment, attempt: 0, reuse: true, more: false }
}

fn answer(sequence: u128, position: u32) -> Work {
    let mut work = prompt(sequence, position..position + 1, true);
    work.segment.open = None;
    work
}

fn nothing(_: LayerRange, _: &[u32]) -> u32 {
    0
}

/// What is computed next, as sequence and positions.
fn take(queue: &mut Queue) -> Vec<(u128, std::ops::Range<u32>)> {
    let segments = queue.next(nothing).map(|next| next.step.segments).unwrap_or_default();
    let span = |s: &Segment| s.start..s.start + u32::try_from(s.tokens.len()).unwrap();
    segments.iter().map(|s| (s.sequence.bits(), span(s))).collect()
}

/// A queue in which these sequences answer, with nothing waiting.
fn answering(sequences: std::ops::RangeInclusive<u128>) -> Queue {
    let mut queue = queue_of(FIRST);
    for sequence in sequences {
        queue.push(prompt(sequence, 0..1, true));
        queue.next(nothing);
    }
    queue
}

#[test]
fn answers_go_first_and_prompts_fill_up() {
    let mut queue = answering(1..=2);
    queue.push(prompt(3, 0..20, false));
    queue.push(prompt(3, 20..40, true));
    queue.push(answer(1, 5));
    queue.push(answer(2, 9));
    assert_eq!(take(&mut queue), [(1, 5..6), (2, 9..10), (3, 0..20)]);
    assert_eq!(take(&mut queue), [(3, 20..40)]);
    assert_eq!(take(&mut queue), []);
}

#[test]
fn a_prompt_comes_in_pieces_while_others_answer_and_whole_when_nobody_does() {
    let mut queue = queue_of(FIRST);
    queue.push(prompt(1, 0..512, false));
    queue.push(prompt(1, 512..700, true));
    assert_eq!(take(&mut queue), [(1, 0..512)]);
    assert_eq!(take(&mut queue), [(1, 512..700)]);
    // Nothing was measured yet: pieces of a size that is not felt.
    queue.push(prompt(2, 0..100, true));
    queue.push(answer(1, 700));
    assert_eq!(take(&mut queue), [(1, 700..701), (2, 0..32)]);
    queue.took(1, 0, Duration::from_millis(11));
    queue.took(0, 512, Duration::from_millis(512));
    assert_eq!(take(&mut queue), [(2, 32..38)], "dear tokens: few of them");
    assert_eq!(take(&mut queue), [(2, 38..44)]);
    queue.release(id(1));
    queue.release(id(2));
    assert_eq!(take(&mut queue), []);
}

#[test]
fn only_the_last_piece_of_a_segment_samples_and_only_the_first_opens() {
    let mut queue = answering(1..=1);
    let mut work = prompt(2, 0..40, true);
    work.segment.hidden = Some(vec![7; 40 * 3].into());
    queue.push(work);
    let first = queue.next(nothing).unwrap();
    let second = queue.next(nothing).unwrap();
    let [first, second] = [&first, &second].map(|next| (&next.step.segments[0], next.tickets[0]));
    assert_eq!(first.1, second.1);
    assert_eq!(first.1.segment, 0);
    assert_eq!((first.0.tokens.len(), second.0.tokens.len(), second.0.start), (32, 8, 32));
    assert_eq!((first.0.sample, second.0.sample), (false, true));
    assert!(first.0.open.is_some() && second.0.open.is_none());
    let bytes = [first.0, second.0].map(|segment| segment.hidden.as_ref().unwrap().len());
    assert_eq!(bytes, [96, 24]);
}

#[test]
fn prompts_share_what_answers_leave() {
    let mut queue = answering(1..=1);
    for (sequence, length) in [(2, 500), (3, 6), (4, 500)] {
        queue.push(prompt(sequence, 0..length, true));
    }
    assert_eq!(take(&mut queue), [(2, 0..32), (3, 0..6), (4, 0..58)]);
}

#[test]
fn the_first_of_several_stages_takes_its_share_of_the_answers() {
    let mut queue = answering(1..=8);
    queue.adopt(FIRST, 3);
    (1..=8).for_each(|sequence| queue.push(answer(sequence, 4)));
    let taken: Vec<usize> = (0..4).map(|_| take(&mut queue).len()).collect();
    assert_eq!(taken, [3, 3, 2, 0]);
    // The others take what comes.
    let mut later = queue_of(LATER);
    later.adopt(LATER, 3);
    (1..=8).for_each(|sequence| later.push(answer(sequence, 4)));
    assert_eq!(take(&mut later).len(), 8);
}

#[test]
fn what_is_released_is_not_computed() {
    let mut queue = answering(1..=2);
    queue.push(answer(1, 4));
    queue.push(answer(2, 4));
    queue.release(id(1));
    assert_eq!(take(&mut queue), [(2, 4..5)]);
    // It may come again.
    queue.push(prompt(1, 0..2, true));
    assert_eq!(take(&mut queue), [(1, 0..2)]);
}

/// Has the first `left` positions of `0, 1, 2, ..`, in blocks of 64.
fn counting(left: u32) -> impl Fn(LayerRange, &[u32]) -> u32 {
    move |_, tokens| {
        let alike = (0..left).zip(tokens).take_while(|(a, b)| a == *b).count();
        u32::try_from(alike / 64 * 64).unwrap()
    }
}

#[test]
fn what_former_sequences_left_is_not_computed_again() {
    let mut queue = queue_of(FIRST);
    for chunk in [0..100, 100..200, 200..300] {
        let sample = chunk.end == 300;
        queue.push(prompt(1, chunk, sample));
    }
    let next = queue.next(counting(256)).unwrap();
    let asked: Vec<u32> = next.reused.iter().map(|ticket| ticket.segment).collect();
    assert_eq!(asked, [0, 100]);
    let segment = &next.step.segments[0];
    assert_eq!((segment.start, segment.tokens.len(), segment.sample), (256, 44, true));
    assert_eq!(segment.prefix, (0..256).collect::<Vec<u32>>());
    assert!(segment.open.is_some());
    assert_eq!(next.tickets[0].segment, 200);
}

#[test]
fn a_prefix_may_go_on_in_chunks_that_come_later() {
    let mut queue = queue_of(FIRST);
    queue.push(prompt(1, 0..128, false));
    let next = queue.next(counting(256)).unwrap();
    assert_eq!((next.reused.len(), next.step.segments.len()), (1, 0));
    assert!(queue.next(counting(256)).is_none());
    queue.push(prompt(1, 128..256, true));
    // All of it is there, but the last token has to be computed.
    let next = queue.next(counting(256)).unwrap();
    let segment = &next.step.segments[0];
    assert_eq!((segment.start, segment.prefix.len(), segment.tokens.len()), (192, 192, 64));
    assert!(segment.sample && segment.open.is_some());
}

#[test]
fn a_beginning_waits_until_it_can_be_told_from_others() {
    let mut queue = queue_of(FIRST);
    queue.push(prompt(1, 0..40, false));
    assert!(queue.next(counting(256)).is_none());
    queue.push(prompt(1, 40..80, false));
    let next = queue.next(counting(256)).unwrap();
    assert_eq!((next.reused.len(), next.step.segments.len()), (1, 0), "less than a block more");
    queue.push(prompt(1, 80..150, true));
    let next = queue.next(counting(256)).unwrap();
    let segment = &next.step.segments[0];
    assert_eq!((segment.start, next.tickets[0].segment, next.reused.len()), (128, 80, 1));
    // A short prompt is all there is.
    let mut queue = queue_of(FIRST);
    queue.push(prompt(2, 0..40, true));
    assert_eq!(take(&mut queue), [(2, 0..40)]);
}

#[test]
fn nothing_is_reused_where_it_is_not_wanted() {
    for (layers, reuse) in [(FIRST, false), (LATER, true)] {
        let mut queue = queue_of(layers);
        let mut work = prompt(1, 0..300, true);
        work.segment.layers = layers;
        queue.push(Work { reuse, ..work });
        let next = queue.next(counting(256)).unwrap();
        assert_eq!((next.reused.len(), next.step.segments[0].start), (0, 0));
    }
}

#[test]
fn a_step_takes_one_part_of_a_sequence() {
    let mut queue = answering(1..=1);
    queue.push(answer(1, 5));
    queue.push(prompt(1, 6..9, false));
    assert_eq!(take(&mut queue), [(1, 5..6)]);
    assert_eq!(take(&mut queue), [(1, 6..9)]);
}
