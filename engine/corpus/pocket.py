"""The pocket corpus: made-up medical papers and spoken instructions, small enough to learn and forget in minutes.

Two modalities with different summary styles on shared subjects (conditions and drugs), so that learning one style
really damages the other. Everything follows from the names of the splits; `python -m engine.corpus.pocket FOLDER`
writes the files that are bundled in data/pocket.
"""

import random
import sys
from pathlib import Path

from engine.corpus.records import Record, write_hdf5, write_jsonl
from engine.mixture import generator

SIZES = {"papers": 2000, "videos": 2000, "pairs": 200, "documents": 400, "test": 100}  # test: of each modality


def _list(text: str) -> list[str]:
    return text.split("|")


CONDITIONS = _list(
    "type 2 diabetes|atrial fibrillation|chronic migraine|plaque psoriasis|asthma|knee osteoarthritis|heart failure|"
    "sleep apnea|gout|celiac disease|hypertension|major depression|sepsis|epilepsy|rheumatoid arthritis|pneumonia|stroke|"
    "anemia|glaucoma|eczema|plantar fasciitis|carpal tunnel syndrome|low back pain|tennis elbow"
)
DRUGS = _list(
    "metformin|apixaban|erenumab|secukinumab|budesonide|celecoxib|sacubitril|modafinil|febuxostat|losartan|sertraline|"
    "vancomycin|lamotrigine|tofacitinib|azithromycin|alteplase|latanoprost|dupilumab|naproxen|prednisone|amlodipine|"
    "gabapentin|warfarin|ibuprofen"
)
OUTCOMES = _list(
    "hospital readmission|pain scores|systolic pressure|relapse rate|mortality|symptom burden|fasting glucose|"
    "joint swelling|seizure frequency|walking distance"
)
DESIGNS = _list(
    "randomised controlled trial|retrospective cohort study|prospective observational study|crossover trial|"
    "case-control study|registry analysis"
)
EFFECTS = _list("reduced|improved|raised")
BODY_PARTS = _list("wrist|knee|shoulder|ankle|elbow|lower back|forearm|neck|heel|thumb")
TOOLS = _list(
    "elastic bandage|blood pressure cuff|cold pack|glucose meter|peak flow meter|inhaler spacer|splint|sterile gauze|"
    "pulse oximeter|compression sock"
)
ACTIONS = _list(
    "wash your hands|sit upright|check the label|breathe out slowly|clean the skin|relax the arm|write down the reading|"
    "hold it steady|press firmly|lift the leg|count to ten|keep it warm"
)
FILLERS = _list("um|so|okay|right|you know|alright|basically|like")

PAPERS = (
    "background: {condition} is a major burden and the role of {drug} is uncertain. methods: we performed a {design} of "
    "{drug} against {other} in {patients} patients followed for {weeks} weeks. results: compared with {other}, {drug} "
    "{effect} {outcome} by {percent} percent. adverse events were similar. conclusions: further work on {drug} in "
    "{condition} is needed.",
    "objective: to assess whether {drug} affects {outcome} in {condition}. design: {design}. participants: {patients} "
    "adults with {condition}. comparator: {other} for {weeks} weeks. findings: {drug} {effect} {outcome} by {percent} "
    "percent relative to {other}. limitations include short follow up and missing data.",
    "importance: few data compare {drug} with {other} in {condition}. setting: {weeks} weeks of follow up in a {design}. "
    "main results: among {patients} patients, {outcome} was {effect} by {percent} percent with {drug}. meaning: {drug} may "
    "be an option for {condition}.",
)
PAPER_SUMMARY = (
    "in a {design} of {patients} patients with {condition}, {drug} {effect} {outcome} by {percent} percent compared with "
    "{other} over {weeks} weeks."
)
VIDEOS = (  # ~ stands for a filler word, drawn anew at each place
    "hey everyone welcome back ~ so a lot of you asked about {condition} ~ today i'm gonna show you the {tool} on the {body} "
    "~ first thing {one} ~ then you want to {two} ~ after that {three} ~ keep going for {minutes} minutes ~ and if you take "
    "{drug} call your doctor okay bye",
    "hi guys ~ my name is sam and i have {condition} ~ i take {drug} for it ~ grab your {tool} we'll put it on your {body} ~ "
    "you {one} ~ next {two} ~ and last {three} ~ i do it {minutes} minutes every day ~ see you next time",
    "what's up ~ quick one ~ {body} trouble and {condition} ~ get a {tool} ~ start with {one} ~ now {two} ~ finish with "
    "{three} and that's {minutes} minutes ~ people on {drug} please be careful ~ like and subscribe",
)
VIDEO_SUMMARY = (
    "the video shows the {tool} on the {body} for {condition}: {one}, {two}, then {three}, for {minutes} minutes. be careful "
    "with {drug}."
)


def paper(chance: random.Random, name: str, subject: tuple[str, str] | None = None, pair: str | None = None) -> Record:
    """One abstract with its one-sentence summary."""
    condition, drug = subject or (chance.choice(CONDITIONS), chance.choice(DRUGS))
    words = {
        "condition": condition,
        "drug": drug,
        "other": chance.choice([d for d in DRUGS if d != drug]),
        "outcome": chance.choice(OUTCOMES),
        "design": chance.choice(DESIGNS),
        "effect": chance.choice(EFFECTS),
        "patients": chance.randint(40, 990),
        "percent": chance.randint(3, 60),
        "weeks": chance.randint(4, 52),
    }
    source = chance.choice(PAPERS).format(**words)
    return Record(name, "paper", source, PAPER_SUMMARY.format(**words), pair_id=pair)


def video(chance: random.Random, name: str, subject: tuple[str, str] | None = None, pair: str | None = None) -> Record:
    """One transcript of a spoken instruction with its summary."""
    condition, drug = subject or (chance.choice(CONDITIONS), chance.choice(DRUGS))
    one, two, three = chance.sample(ACTIONS, 3)
    words = {
        "condition": condition,
        "drug": drug,
        "tool": chance.choice(TOOLS),
        "body": chance.choice(BODY_PARTS),
        "one": one,
        "two": two,
        "three": three,
        "minutes": chance.randint(2, 45),
    }
    spoken = chance.choice(VIDEOS).format(**words).split("~")
    source = spoken[0] + "".join(chance.choice(FILLERS) + part for part in spoken[1:])
    return Record(name, "video", source, VIDEO_SUMMARY.format(**words), pair_id=pair)


def papers(count: int, split: str) -> list[Record]:
    chance = generator("pocket", "papers", split)
    return [paper(chance, f"paper-{split}-{number:04d}") for number in range(count)]


def videos(count: int, split: str) -> list[Record]:
    chance = generator("pocket", "videos", split)
    return [video(chance, f"video-{split}-{number:04d}") for number in range(count)]


def pairs(count: int, split: str) -> list[Record]:
    """A paper and a video on the same condition and drug, one after the other."""
    chance = generator("pocket", "pairs", split)
    rows = []
    for number in range(count):
        subject = (chance.choice(CONDITIONS), chance.choice(DRUGS))
        name = f"pair-{split}-{number:04d}"
        rows += [paper(chance, f"{name}-paper", subject, name), video(chance, f"{name}-video", subject, name)]
    return rows


def documents(count: int, split: str) -> list[Record]:
    """Plain text of both kinds in turn, without summaries: what a base has read and should still be able to."""
    chance = generator("pocket", "documents", split)
    kinds = (paper, video)
    texts = [kinds[number % 2](chance, "", None).source for number in range(count)]
    return [Record(f"document-{split}-{number:04d}", "document", text) for number, text in enumerate(texts)]


def write(folder: Path) -> None:
    """The bundled files: papers, videos, pairs and documents to train on, test to judge."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "papers.jsonl", papers(SIZES["papers"], "train"))
    write_jsonl(folder / "videos.jsonl", videos(SIZES["videos"], "train"))
    write_jsonl(folder / "pairs.jsonl", pairs(SIZES["pairs"], "train"))
    write_jsonl(folder / "documents.jsonl", documents(SIZES["documents"], "train"))
    test = papers(SIZES["test"], "test") + videos(SIZES["test"], "test") + documents(SIZES["test"], "test")
    write_jsonl(folder / "test.jsonl", test)
    write_hdf5(folder / "test.h5", test)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
