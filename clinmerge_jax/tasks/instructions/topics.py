"""Topics, request templates and keywords of the everyday prompts; IFEval has none of the topics and keywords."""

THINGS = (
    "accordion", "banjo", "barometer", "bookshelf", "colander", "compass", "doorbell", "harmonica", "kettle", "ladder",
    "lantern", "parachute", "quilt", "raincoat", "saucepan", "sledge", "sundial", "telescope", "thermos", "toolbox",
    "trombone", "umbrella", "wardrobe", "wheelbarrow",
)  # fmt: skip
ANIMALS = ("badger", "beaver", "hedgehog", "heron", "otter", "puffin", "salamander", "tortoise", "walrus")
PLACES = (
    "bakery",
    "canyon",
    "estuary",
    "fjord",
    "glacier",
    "greenhouse",
    "lighthouse",
    "meadow",
    "orchard",
    "windmill",
)
PASTIMES = (
    "archery", "badminton", "beekeeping", "birdwatching", "curling", "fencing", "juggling", "knitting", "orienteering",
    "origami", "pottery", "stargazing",
)  # fmt: skip
DISHES = ("chutney", "dumplings", "marmalade", "omelettes", "porridge", "crumpets", "sourdough")
TRADES = ("carpenter", "cobbler", "florist", "glazier", "locksmith", "plumber", "shepherd", "thatcher")
REQUESTS = (
    "Explain to a newcomer how {pastime} is done.",
    "Someone has never seen a {thing}. Tell them what it is for.",
    "How would you choose between a {thing} and a {other}?",
    "Give advice to a neighbour whose {thing} has gone missing.",
    "Describe an early morning at a {place} in winter.",
    "What does a {trade} do between breakfast and lunch?",
    "Make up a few lines in which a {animal} and a {other} have an argument.",
    "Recommend {pastime} to an aunt who is bored.",
    "Say how to make {dish} for a crowd.",
    "Why would anybody keep a {thing} in a {place}?",
    "Invent a notice for the door of a {trade} who is away until Thursday.",
    "Tell the tale of the {animal} that moved into a {place}.",
    "Which mistakes do beginners make when they cook {dish}?",
    "Praise the {thing} as if you had built it yourself.",
    "Plan an outing to a {place} for a class of nine-year-olds.",
    "Record what a {animal} might put into its diary.",
)
QUESTIONS = (
    "Does a {thing} weigh more than a {other}?",
    "Could a {animal} be happy at a {place}?",
    "Is {pastime} harder to learn than cooking {dish}?",
    "Should a {trade} own a {thing}?",
)
WORDS = (
    "autumn", "bucket", "candle", "corner", "cushion", "drizzle", "feather", "gravel", "ladle", "mitten", "muddy",
    "pebble", "thimble", "ribbon", "rusty", "saddle", "spoon", "teaspoon", "velvet", "willow", "window", "wooden",
)  # fmt: skip
