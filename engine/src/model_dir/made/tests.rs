use super::*;

fn made(recipe: Recipe, sources: &[&[u8]]) -> Result<Vec<u8>, String> {
    let sources: Vec<Vec<u8>> = sources.iter().map(|bytes| bytes.to_vec()).collect();
    Made::new(recipe, Vec::new()).numbers(&sources)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    as_words(bytes)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    read(Dtype::F32, bytes).collect()
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    write(Dtype::F32, numbers.iter().copied())
}

#[test]
fn numbers_of_a_block_are_multiplied_by_its_scale() {
    // E4M3: 1, 2, -1, 0.5, and so on over a matrix of 3 rows and 5 columns, in blocks of 2 x 3.
    let one: Vec<u8> = vec![0x38; 15];
    let blocks =
        Blocks { rows: 3, columns: 5, block_rows: 2, block_columns: 3, scales: Dtype::F32 };
    let scales = bytes_of(&[1.0, 2.0, 3.0, 4.0]);
    let found = made(Recipe::Scaled(blocks), &[&one, &scales]).unwrap();
    let found: Vec<f32> = read(Dtype::BF16, &found).collect();
    let expected = [1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0];
    assert_eq!(found, expected);
}

#[test]
fn powers_of_two_are_exponents_and_others_are_refused() {
    let blocks =
        Blocks { rows: 2, columns: 64, block_rows: 1, block_columns: 32, scales: Dtype::F32 };
    let scales = bytes_of(&[1.0, 0.5, 4.0, 2.0]);
    assert_eq!(made(Recipe::Powers(blocks), &[&scales]).unwrap(), [127, 126, 129, 128]);
    for wrong in [3.0, 0.0, -2.0, f32::INFINITY, f32::NAN] {
        let scales = bytes_of(&[1.0, wrong, 4.0, 2.0]);
        let error = made(Recipe::Powers(blocks), &[&scales]).unwrap_err();
        assert!(error.contains("no power of two"), "{wrong}: {error}");
    }
}

fn integers(order: Order) -> Integers {
    Integers {
        inputs: 16,
        outputs: 8,
        groups: 2,
        bits: 4,
        scales: Dtype::F32,
        order,
        added_to_zeros: u32::from(order == Order::Gptq),
    }
}

/// The number for an input and an output: any that tells them apart.
#[expect(clippy::cast_possible_truncation, reason = "below 16")]
const fn number(input: usize, output: usize) -> u32 {
    ((3 * input + 5 * output) % 16) as u32
}

/// [`number`] for all inputs and outputs, as GPTQ stores them.
fn words_of_gptq() -> Vec<u8> {
    let words = (0..2).flat_map(|word| {
        (0..8).map(move |output| -> u32 {
            (0..8).map(|place| number(word * 8 + place, output) << (4 * place)).sum()
        })
    });
    words.flat_map(u32::to_le_bytes).collect()
}

#[test]
fn both_orders_give_the_same_matrix() {
    let expected: Vec<u32> = (0..8)
        .flat_map(|output| {
            (0..2).map(move |word| {
                (0..8).map(|place| number(word * 8 + place, output) << (4 * place)).sum()
            })
        })
        .collect();
    let gptq = words_of_gptq();
    let weight = |order| Recipe::Integers(integers(order), IntegerPart::Weight);
    assert_eq!(words(&made(weight(Order::Gptq), &[&gptq]).unwrap()), expected);
    // Nibbles of a word from the lowest: outputs 0, 2, 4, 6, 1, 3, 5, 7.
    let awq: Vec<u8> = (0..16)
        .map(|input| -> u32 {
            let outputs = [0, 2, 4, 6, 1, 3, 5, 7].into_iter().enumerate();
            outputs.map(|(place, output)| number(input, output) << (4 * place)).sum()
        })
        .flat_map(u32::to_le_bytes)
        .collect();
    assert_eq!(words(&made(weight(Order::Awq), &[&awq]).unwrap()), expected);
    let in_order: Vec<u8> = (0..16_u32).flat_map(|input| (input / 8).to_le_bytes()).collect();
    assert!(made(weight(Order::Gptq), &[&gptq, &in_order]).is_ok());
    let turned: Vec<u8> = (0..16_u32).flat_map(|input| (input % 2).to_le_bytes()).collect();
    let error = made(weight(Order::Gptq), &[&gptq, &turned]).unwrap_err();
    assert!(error.contains("desc_act"), "{error}");
}

#[test]
fn scales_change_places_and_zero_points_become_biases() {
    let scales: Vec<f32> = (1..=16_u8).map(f32::from).collect();
    let scales = bytes_of(&scales);
    let found = |order, part, sources: &[&[u8]]| {
        floats(&made(Recipe::Integers(integers(order), part), sources).unwrap())
    };
    let expected: Vec<f32> = (1..=8_u8).flat_map(|o| [f32::from(o), f32::from(o + 8)]).collect();
    assert_eq!(found(Order::Gptq, IntegerPart::Scales, &[&scales]), expected);
    // Zero points 0 to 7 in both groups.
    let straight = u32::to_le_bytes(0x7654_3210).repeat(2);
    let awq = u32::to_le_bytes(0x7531_6420).repeat(2);
    let of = |zero: fn(usize) -> f32| -> Vec<f32> {
        let all = expected.iter().enumerate();
        all.map(|(index, scale)| -zero(index / 2) * scale).collect()
    };
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (plain, one_more) = (of(|output| output as f32), of(|output| (output + 1) as f32));
    assert_eq!(found(Order::Awq, IntegerPart::Biases, &[&scales, &awq]), plain);
    assert_eq!(found(Order::Gptq, IntegerPart::Biases, &[&scales, &straight]), one_more);
}

#[test]
fn integers_are_unpacked_as_mlx_does() {
    // Zero points 0 to 7, scales 1 to 16.
    let gptq = words_of_gptq();
    let scales: Vec<f32> = (1..=16_u8).map(f32::from).collect();
    let zeros = u32::to_le_bytes(0x7654_3210).repeat(2);
    let recipe = Recipe::Integers(integers(Order::Gptq), IntegerPart::Plain);
    let found = floats(&made(recipe, &[&gptq, &bytes_of(&scales), &zeros]).unwrap());
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let expected = (0..8_usize).flat_map(|output| {
        (0..16).map(move |input| {
            let scale = (output + 1 + 8 * (input / 8)) as f32;
            (number(input, output) as f32 - (output + 1) as f32) * scale
        })
    });
    assert_eq!(found, expected.collect::<Vec<f32>>());
    let symmetric = Symmetric { bits: 4, group: 4, scales: Dtype::F32 };
    let words = u32::to_le_bytes(0xf876_0189);
    let found = made(Recipe::Symmetric(symmetric), &[&words, &bytes_of(&[1.0, 2.0])]).unwrap();
    assert_eq!(floats(&found), [1.0, 0.0, -7.0, -8.0, -4.0, -2.0, 0.0, 14.0]);
}

#[test]
fn multiples_and_reciprocals_keep_their_type() {
    let scales = write(Dtype::BF16, [0.5, 3.0].into_iter());
    let recipe = Recipe::Multiples { factor: -8, dtype: Dtype::BF16 };
    let found = made(recipe, &[&scales]).unwrap();
    assert_eq!(read(Dtype::BF16, &found).collect::<Vec<f32>>(), [-4.0, -24.0]);
    let found = made(Recipe::Reciprocals, &[&bytes_of(&[4.0])]).unwrap();
    assert_eq!(floats(&found), [0.25]);
}

#[test]
fn short_sources_give_no_panic() {
    for order in [Order::Awq, Order::Gptq] {
        for part in
            [IntegerPart::Weight, IntegerPart::Scales, IntegerPart::Biases, IntegerPart::Plain]
        {
            let _ = made(Recipe::Integers(integers(order), part), &[]);
        }
    }
}
