"""All words of the page, in Italian and in English."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Words:
    """One language: a field that one language lacks is an error of types, not an empty button.

    Names in braces are filled in with `str.format`. Headings and labels are plain text.
    """

    language: str  # BCP 47 tag
    own_name: str
    title: str
    intro: str
    other_page: str
    other_path: str
    model: str
    pictures: str
    # tabs
    text_to_image: str
    image_to_text: str
    where: str
    compare: str
    # text → images
    query: str
    query_hint: str
    negative: str
    negative_hint: str
    how_many: str
    fold: str
    fold_hint: str
    search: str
    examples: str
    results: str
    score: str
    similar: str
    similar_one: str
    search_like: str
    found: str
    found_like: str
    # image → text
    upload: str
    chosen: str
    or_example: str
    candidates: str
    typed: str
    pack: str
    typed_hint: str
    template: str
    template_hint: str
    classify: str
    probabilities: str
    scale: str
    sigmoid_scale: str
    # where
    phrase: str
    phrase_hint: str
    method: str
    tokens: str
    occlusion: str
    opacity: str
    locate: str
    heat_map_of: str
    legend_low: str
    legend_high: str
    flat: str
    # compare
    compare_search: str
    in_common: str
    # what went wrong, or may have
    empty_query: str
    no_letters: str
    cut: str
    maybe_english: str
    maybe_other: str
    unknown_words: str
    no_picture: str
    few_candidates: str
    many_candidates: str
    bad_template: str
    too_large: str
    no_image: str
    too_many_pixels: str
    empty_file: str
    svg: str
    broken: str
    gone: str
    upload_gone: str
    failed: str
    example_queries: tuple[str, ...]
    candidate_texts: tuple[str, ...]

    def number(self, value: float, digits: int = 0) -> str:
        """A number as the language writes it: 1,234.5 in English is 1.234,5 in Italian."""
        written = f"{value:,.{digits}f}"
        return written.translate(str.maketrans(",.", ".,")) if self.language == "it" else written


ITALIAN = Words(
    language="it",
    own_name="Italiano",
    title="Che cosa ha imparato il modello",
    intro=(
        "Scrivi una frase e cerca tra le immagini, o carica un'immagine e scegli tra le parole. "
        "Le immagini caricate non lasciano questo server e non vengono conservate."
    ),
    other_page="In English",
    other_path="/en",
    model="modello",
    pictures="{count} immagini",
    text_to_image="Testo → immagini",
    image_to_text="Immagine → testo",
    where="Dove?",
    compare="Confronto",
    query="Che cosa cerchi?",
    query_hint="per esempio: {example}",
    negative="Senza (facoltativo)",
    negative_hint="ciò che l'immagine non deve mostrare",
    how_many="Quante immagini",
    fold="Raccogli le immagini quasi uguali",
    fold_hint="per il modello si somigliano per più di {threshold}",
    search="Cerca",
    examples="Esempi",
    results="Immagini trovate",
    score="somiglianza {score}",
    similar="e altre {count} quasi uguali",
    similar_one="e un'altra quasi uguale",
    search_like="Cerca immagini simili a questa: {caption}",
    found="{count} immagini per «{query}», in {milliseconds} ms",
    found_like="{count} immagini simili a «{caption}», in {milliseconds} ms",
    upload="Immagine (JPEG, PNG, WebP, max 5 MB)",
    chosen="L'immagine scelta",
    or_example="O scegli un'immagine dell'indice",
    candidates="Parole tra cui scegliere",
    typed="Le scrivo io",
    pack="Le 1.000 classi di ImageNet in italiano",
    typed_hint="una per riga",
    template="Frase attorno alle parole",
    template_hint="{} sta per la parola, come la scrivi",
    classify="Classifica",
    probabilities="Probabilità",
    scale="softmax dei coseni per {scale}, la scala del modello",
    sigmoid_scale="sigmoide dei coseni per {scale} più {bias}, ogni parola per sé",
    phrase="Che cosa indicare?",
    phrase_hint="per esempio: {example}",
    method="Metodo",
    tokens="a pezzetti (veloce)",
    occlusion="coprendo (lento)",
    opacity="Opacità della mappa",
    locate="Indica",
    heat_map_of="Mappa di calore di «{phrase}» sull'immagine",
    legend_low="meno",
    legend_high="di più",
    flat="La mappa è piatta: per il modello nessuna parte dell'immagine conta più delle altre.",
    compare_search="Confronta",
    in_common="{common} delle prime {count} immagini in comune",
    empty_query="Scrivi prima qualche parola, per esempio «{example}».",
    no_letters="«{text}» non contiene parole: il modello legge parole.",
    cut="La frase è lunga {count} token; il modello legge solo i primi {most}.",
    maybe_english="Sembra inglese: questo modello ha imparato dall'italiano. Prova in italiano.",
    maybe_other="Non sembra italiano: questo modello ha imparato dall'italiano.",
    unknown_words="Il modello non conosce: {words}.",
    no_picture="Carica prima un'immagine, o scegline una tra gli esempi.",
    few_candidates="Scrivi almeno due parole o frasi diverse, una per riga.",
    many_candidates="Al massimo {most} righe; ce ne sono {count}.",
    bad_template="La frase deve contenere {} una volta, e nessun'altra parentesi graffa.",
    too_large="Il file è di {size}; al massimo 5 MB.",
    no_image="Questo file non è un'immagine JPEG, PNG o WebP (il nome non conta).",
    too_many_pixels="L'immagine ha {megapixels} megapixel; al massimo {most}.",
    empty_file="Il file è vuoto.",
    svg="Le immagini SVG non si possono usare: salvala come PNG.",
    broken="L'immagine è danneggiata o incompleta.",
    gone="Questo esempio non c'è più: ricarica la pagina.",
    upload_gone="L'immagine caricata è già stata cancellata: caricala di nuovo.",
    failed="Qualcosa è andato storto. Riprova; se succede ancora, lo dice il registro del server.",
    example_queries=(
        "un cane che corre sulla spiaggia",
        "due bambini che giocano a pallone",
        "un piatto di pasta al pomodoro",
        "una strada di notte sotto la pioggia",
    ),
    candidate_texts=("un cane", "un gatto", "una bicicletta", "un piatto di pasta"),
)

ENGLISH = Words(
    language="en",
    own_name="English",
    title="What the model has learned",
    intro=(
        "Write a phrase in Italian and search the pictures, or upload a picture and choose among "
        "words. Uploaded pictures do not leave this server and are not kept."
    ),
    other_page="In italiano",
    other_path="/",
    model="model",
    pictures="{count} pictures",
    text_to_image="Text → images",
    image_to_text="Image → text",
    where="Where?",
    compare="Compare",
    query="What are you looking for? (in Italian)",
    query_hint="for instance: {example}",
    negative="Without (optional)",
    negative_hint="what the picture must not show",
    how_many="How many pictures",
    fold="Fold near-duplicates",
    fold_hint="alike by more than {threshold} for the model",
    search="Search",
    examples="Examples",
    results="Pictures found",
    score="similarity {score}",
    similar="and {count} others nearly the same",
    similar_one="and another one nearly the same",
    search_like="Search for pictures like this one: {caption}",
    found="{count} pictures for “{query}”, in {milliseconds} ms",
    found_like="{count} pictures like “{caption}”, in {milliseconds} ms",
    upload="Picture (JPEG, PNG, WebP, max 5 MB)",
    chosen="The chosen picture",
    or_example="Or choose a picture of the index",
    candidates="Words to choose among",
    typed="I write them",
    pack="The 1,000 classes of ImageNet in Italian",
    typed_hint="one a line, in Italian",
    template="Phrase around the words",
    template_hint="{} stands for the word, as you write it",
    classify="Classify",
    probabilities="Probabilities",
    scale="softmax of the cosines times {scale}, the model's own scale",
    sigmoid_scale="sigmoid of the cosines times {scale} plus {bias}, each word by itself",
    phrase="What to point at? (in Italian)",
    phrase_hint="for instance: {example}",
    method="Method",
    tokens="by patches (fast)",
    occlusion="by covering (slow)",
    opacity="Opacity of the map",
    locate="Point",
    heat_map_of="Heat map of “{phrase}” over the picture",
    legend_low="less",
    legend_high="more",
    flat="The map is flat: to the model no part of the picture counts more than the others.",
    compare_search="Compare",
    in_common="{common} of the first {count} pictures in common",
    empty_query="Write some words first, for instance “{example}”.",
    no_letters="“{text}” holds no words: the model reads words.",
    cut="The phrase is {count} tokens long; the model reads only the first {most}.",
    maybe_english="This seems to be English: the model has learned from Italian. Try Italian.",
    maybe_other="This does not seem to be Italian: the model has learned from Italian.",
    unknown_words="The model does not know: {words}.",
    no_picture="Upload a picture first, or choose one of the examples.",
    few_candidates="Write at least two different words or phrases, one a line.",
    many_candidates="{most} lines at most; there are {count}.",
    bad_template="The phrase must hold {} once, and no other brace.",
    too_large="The file has {size}; 5 MB at most.",
    no_image="This file is no JPEG, PNG or WebP picture (its name does not count).",
    too_many_pixels="The picture has {megapixels} megapixels; {most} at most.",
    empty_file="The file is empty.",
    svg="SVG pictures cannot be used: save it as PNG.",
    broken="The picture is damaged or incomplete.",
    gone="This example is gone: load the page again.",
    upload_gone="The uploaded picture has been deleted by now: upload it again.",
    failed="Something went wrong. Try again; if it goes on, the server's log says why.",
    example_queries=ITALIAN.example_queries,
    candidate_texts=ITALIAN.candidate_texts,
)

LANGUAGES: Mapping[str, Words] = {"it": ITALIAN, "en": ENGLISH}
