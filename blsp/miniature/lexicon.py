"""The words of the miniature: slots, requests and questions, in English and in German.

English is written as Whisper's English normaliser leaves it (lower case, digits, no punctuation), so that
what is spoken, what is scored and what the LLM reads are one text. A German slot value carries its article
or preposition, so that templates need no inflection.
"""

from dataclasses import dataclass

SLOTS: dict[str, dict[str, str]] = {
    "room": {
        "kitchen": "in der Küche",
        "bedroom": "im Schlafzimmer",
        "bathroom": "im Badezimmer",
        "hallway": "im Flur",
        "garage": "in der Garage",
        "office": "im Büro",
        "garden": "im Garten",
        "cellar": "im Keller",
        "attic": "auf dem Dachboden",
        "nursery": "im Kinderzimmer",
    },
    "device": {
        "ceiling light": "das Deckenlicht",
        "desk lamp": "die Schreibtischlampe",
        "fan": "den Ventilator",
        "television": "den Fernseher",
        "printer": "den Drucker",
        "speaker": "den Lautsprecher",
    },
    "degrees": {"16": "16", "18": "18", "19": "19", "21": "21", "22": "22", "24": "24"},
    "minutes": {"5": "5", "10": "10", "15": "15", "20": "20", "25": "25", "30": "30", "40": "40", "50": "50"},
    "hour": {"6": "6", "7": "7", "8": "8", "9": "9", "11": "11", "12": "12"},
    "genre": {
        "jazz": "Jazzmusik",
        "rock": "Rockmusik",
        "classical": "klassische Musik",
        "folk": "Volksmusik",
        "piano": "Klaviermusik",
        "guitar": "Gitarrenmusik",
        "dance": "Tanzmusik",
        "church": "Kirchenmusik",
    },
    "city": {
        "berlin": "Berlin",
        "london": "London",
        "paris": "Paris",
        "madrid": "Madrid",
        "rome": "Rom",
        "vienna": "Wien",
        "prague": "Prag",
        "lisbon": "Lissabon",
        "dublin": "Dublin",
        "warsaw": "Warschau",
        "oslo": "Oslo",
        "boston": "Boston",
        "chicago": "Chicago",
        "toronto": "Toronto",
    },
    "day": {
        "monday": "am Montag",
        "tuesday": "am Dienstag",
        "wednesday": "am Mittwoch",
        "thursday": "am Donnerstag",
        "friday": "am Freitag",
        "saturday": "am Samstag",
        "sunday": "am Sonntag",
    },
    "person": {
        "anna": "Anna",
        "david": "David",
        "maria": "Maria",
        "peter": "Peter",
        "susan": "Susan",
        "thomas": "Thomas",
        "julia": "Julia",
        "martin": "Martin",
        "laura": "Laura",
        "daniel": "Daniel",
        "sophie": "Sophie",
        "victor": "Victor",
        "nina": "Nina",
        "oscar": "Oscar",
    },
    "topic": {
        "meeting": "das Treffen",
        "party": "die Feier",
        "homework": "die Hausaufgaben",
        "concert": "das Konzert",
        "holiday": "den Urlaub",
        "contract": "den Vertrag",
        "wedding": "die Hochzeit",
        "match": "das Spiel",
        "invoice": "die Rechnung",
        "exam": "die Prüfung",
        "project": "das Projekt",
        "accident": "den Unfall",
    },
    "food": {
        "soup": "Suppe",
        "pasta": "Nudeln",
        "pizza": "Pizza",
        "rice": "Reis",
        "salad": "Salat",
        "chicken": "Hähnchen",
        "fish": "Fisch",
        "potatoes": "Kartoffeln",
        "pancakes": "Pfannkuchen",
        "sandwiches": "Brote",
    },
    "drink": {
        "coffee": "Kaffee",
        "tea": "Tee",
        "milk": "Milch",
        "juice": "Saft",
        "water": "Wasser",
        "lemonade": "Limonade",
    },
    "item": {
        "apples": "Äpfel",
        "tomatoes": "Tomaten",
        "cheese": "Käse",
        "butter": "Butter",
        "sugar": "Zucker",
        "flour": "Mehl",
        "onions": "Zwiebeln",
        "bananas": "Bananen",
        "soap": "Seife",
        "candles": "Kerzen",
    },
    "shop": {
        "market": "auf dem Markt",
        "bakery": "in der Bäckerei",
        "pharmacy": "in der Apotheke",
        "supermarket": "im Supermarkt",
        "bookshop": "in der Buchhandlung",
    },
    "vehicle": {
        "train": "einen Zug",
        "bus": "einen Bus",
        "flight": "einen Flug",
        "taxi": "ein Taxi",
        "ferry": "eine Fähre",
    },
    "task": {
        "feed the cat": "die Katze zu füttern",
        "pay the rent": "die Miete zu zahlen",
        "wash the car": "das Auto zu waschen",
        "walk the dog": "den Hund auszuführen",
        "lock the door": "die Tür abzuschließen",
        "water the plants": "die Pflanzen zu gießen",
        "buy flowers": "Blumen zu kaufen",
        "return the book": "das Buch zurückzugeben",
    },
}

QUESTIONS: dict[str, tuple[str, str]] = {
    "room": ("which room", "welches Zimmer"),
    "device": ("which device", "welches Gerät"),
    "degrees": ("how many degrees", "wie viel Grad"),
    "minutes": ("how many minutes", "wie viele Minuten"),
    "hour": ("what time", "um wie viel Uhr"),
    "genre": ("what kind of music", "welche Art von Musik"),
    "city": ("which city", "welche Stadt"),
    "day": ("which day", "welcher Tag"),
    "person": ("who is it", "wer ist es"),
    "topic": ("what is it about", "worum geht es"),
    "food": ("which food", "welches Essen"),
    "drink": ("which drink", "welches Getränk"),
    "item": ("which item", "welche Ware"),
    "shop": ("which shop", "welcher Laden"),
    "vehicle": ("which vehicle", "welches Fahrzeug"),
    "task": ("what is the task", "was ist die Aufgabe"),
}


@dataclass(frozen=True)
class Carrier:
    """How a request is opened: English words before it, German frame around it, and how an answer begins."""

    english: str
    german: str
    answer_english: str
    answer_german: str


CARRIERS = (
    Carrier("", "{imperative}", "Done.", "Erledigt."),
    Carrier("please ", "bitte {imperative}", "With pleasure.", "Sehr gern."),
    Carrier("can you ", "kannst du {infinitive}", "Yes, I can.", "Ja, das kann ich."),
    Carrier("let us ", "lass uns {infinitive}", "Good idea.", "Gute Idee."),
)


@dataclass(frozen=True)
class Intent:
    """One kind of request: its wording in both languages and what the LLM says about it."""

    english: str
    imperative: str
    infinitive: str
    continuations_english: tuple[str, ...]
    continuations_german: tuple[str, ...]


INTENTS: dict[str, Intent] = {
    "device_on": Intent(
        "turn on the {device} in the {room}",
        "schalte {device} {room} ein",
        "{device} {room} einschalten",
        ("The {device} in the {room} is running now.", "Now the {room} has its {device} on."),
        ("Jetzt hast du {device} {room} an.",),
    ),
    "device_off": Intent(
        "switch off the {device} in the {room}",
        "schalte {device} {room} aus",
        "{device} {room} ausschalten",
        ("The {device} in the {room} has stopped.", "Nothing is left of the {device} in the {room}."),
        ("Niemand braucht {device} {room}.",),
    ),
    "heating": Intent(
        "set the heating in the {room} to {degrees} degrees",
        "stelle die Heizung {room} auf {degrees} Grad",
        "die Heizung {room} auf {degrees} Grad stellen",
        (
            "The {room} will be warm at {degrees} degrees.",
            "With {degrees} degrees nobody freezes in the {room}.",
        ),
        ("{room} werden es {degrees} Grad.",),
    ),
    "music": Intent(
        "play some {genre} music in the {room}",
        "spiele {genre} {room}",
        "{genre} {room} spielen",
        ("Everyone in the {room} hears {genre} music.", "The {genre} music sounds great in the {room}."),
        ("{room} erklingt {genre}.",),
    ),
    "alarm": Intent(
        "set an alarm for {day} at {hour}",
        "stelle einen Wecker {day} um {hour} Uhr",
        "einen Wecker {day} um {hour} Uhr stellen",
        ("The alarm will ring at {hour} on {day}.", "On {day} you will wake up at {hour}."),
        ("{day} klingelt es um {hour} Uhr.",),
    ),
    "timer": Intent(
        "start a timer of {minutes} minutes for the {food}",
        "starte eine Uhr von {minutes} Minuten für {food}",
        "eine Uhr von {minutes} Minuten für {food} starten",
        ("In {minutes} minutes the {food} will be ready.", "The {food} needs {minutes} minutes."),
        ("In {minutes} Minuten gibt es {food}.",),
    ),
    "weather": Intent(
        "tell me the weather in {city} on {day}",
        "sage mir das Wetter in {city} {day}",
        "mir das Wetter in {city} {day} sagen",
        ("On {day} the sun shines in {city}.", "In {city} it will rain on {day}."),
        ("In {city} scheint {day} die Sonne.",),
    ),
    "message": Intent(
        "send {person} a message about the {topic}",
        "schicke {person} eine Nachricht über {topic}",
        "{person} eine Nachricht über {topic} schicken",
        ("Soon {person} will read about the {topic}.", "The words about the {topic} reach {person} now."),
        ("{person} liest bald etwas über {topic}.",),
    ),
    "call": Intent(
        "call {person} about the {topic} on {day}",
        "rufe {person} {day} an und besprich {topic}",
        "{person} {day} anrufen und {topic} besprechen",
        (
            "On {day} {person} will pick up the phone and hear about the {topic}.",
            "The phone of {person} rings on {day} because of the {topic}.",
        ),
        ("{day} spricht {person} am Telefon über {topic}.",),
    ),
    "travel": Intent(
        "book a {vehicle} to {city} on {day}",
        "buche {vehicle} nach {city} {day}",
        "{vehicle} nach {city} {day} buchen",
        ("The {vehicle} leaves for {city} on {day}.", "On {day} a {vehicle} takes you to {city}."),
        ("{day} reist du nach {city} und nimmst {vehicle}.",),
    ),
    "shopping": Intent(
        "buy {item} at the {shop}",
        "kaufe {item} {shop}",
        "{item} {shop} kaufen",
        ("The {shop} sells fresh {item}.", "You will carry {item} home from the {shop}."),
        ("{shop} gibt es {item}.",),
    ),
    "order": Intent(
        "order {food} and {drink} for {person}",
        "bestelle {food} und {drink} für {person}",
        "{food} und {drink} für {person} bestellen",
        ("Soon {person} will enjoy {food} with {drink}.", "The cook brings {food} and {drink} to {person}."),
        ("{person} bekommt bald {food} mit {drink}.",),
    ),
    "reminder": Intent(
        "remind {person} to {task} on {day}",
        "erinnere {person} daran {day} {task}",
        "{person} daran erinnern {day} {task}",
        ("On {day} {person} will think of it and {task}.", "Then {person} will {task} on {day}."),
        ("{person} vergisst {day} nicht {task}.",),
    ),
}
