"""How people say, in their next message, that the last answer was wrong or right. Pure; precision before recall.

Only the beginning of a message counts, since whoever corrects begins with that; a question corrects nothing. A message
thanks only if it says nothing else. Languages that are not here give no signal.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Literal

Verdict = Literal["correction", "thanks", ""]

HEAD = 300
"""Characters of a message in which a correction is looked for."""
SHORT = 200
"""Most characters of a message that thanks."""

_GAP = r"[\s,.!:;…–—-]+"
_LOOSE = r"[\s,.!:;、。…–—~)-]*"
_END = r"(?=\s*[.,!:;…]|\s*$)"
_EN_SO = r"(?: (?:still|just|all|also|simply|completely|totally|clearly|quite|definitely|actually|again))*"
_EN_NOT_ABOUT = r"(?! (?:that|to|of|for|with|on|if|when|in|by|about|way|address|size|number)\b)"
_DE_SO = r"(?: (?:leider|immer|noch|aber|so|ja|doch|auch|ganz|einfach|wieder))*"
_FR_SO = r"(?: (?:toujours|encore|malheureusement|vraiment|tout simplement|complètement))*"
_ES_SO = r"(?: (?:todavía|aún|sigue|también|claramente))*"

_CORRECTIONS = {
    "en": (
        rf"(?:(?:hm+|u[hm]+|er|oh|ah|ok|okay|well|sorry|wait|hey|no|nope|actually|but|thanks|thank you|unfortunately){_GAP})*?(?:",
        rf"(?:no|nope){_GAP}(?:sorry{_GAP})?(?:actually{_GAP})?i (?:meant?|said|asked for|asked you|wanted"
        r"|was (?:asking|talking) about)\b(?! (?:that )?i\b| to (?:ask|say|know)\b)",
        r"i (?:actually )?meant (?:the|that|this|my|our|in|on|from|for|\d)",
        r"i (?:said|meant|wanted|asked for|told you)\b[^.?!\n,]{1,60}, not\b",
        r"i (?:had )?asked you (?:to|for|not)\b",
        rf"(?:that|this|it|(?:the|your) (?:answer|result|total|sum|output))(?:'s| is| was){_EN_SO}"
        rf" (?:wrong|incorrect|false|not (?:quite )?(?:right|correct|true|it)|not the right (?:one|answer|file|date)"
        rf"|the wrong (?:one|answer|result|file|date|year|format|language|column|table|link|version|branch))\b{_EN_NOT_ABOUT}",
        rf"(?:that|this|it) (?:isn't|wasn't) (?:right|correct|true|it)\b{_EN_NOT_ABOUT}",
        r"(?:(?:that|this|it)(?:'s| is| was) not|(?:that|this|it) (?:isn't|wasn't)) what (?:i|we)\b",
        r"not what (?:i|we) (?:asked|meant|wanted|said|needed?)\b",
        r"you(?:'ve| have)? (?:completely )?(?:misunderstood|misread|misheard|(?:got|have) (?:it|that|this|me) (?:all )?wrong"
        r"|made (?:a|another) mistake|forgot(?:ten)?\b(?!\?)|ignored)\b",
        r"you (?:didn't|did not) (?:answer|read|do what|understand)\b",
        rf"you(?:'re| are){_EN_SO} (?:wrong|mistaken)\b",
        rf"(?:wrong|incorrect)(?: again| answer| result)?{_END}",
        rf"(?:that|this|it|your (?:code|query|script|command|answer|solution|fix)){_EN_SO} (?:didn't|doesn't|did not|does not)"
        r" (?:work|compile|run|help)\b(?! (?:for|on|with|in|at|any|if|when|to|like)\b)",
        rf"(?:doesn't|didn't) work{_END}",
        r"still (?:(?:getting|seeing|gives me) the same|wrong|not (?:working|right|correct)|doesn't work|the same (?:error|problem|mistake)|broken)\b",
        r")",
    ),
    "de": (
        rf"(?:(?:nein|nee|hm+|äh|oh|ok|okay|sorry|entschuldigung|doch|aber|danke){_GAP})*?(?:",
        rf"(?:nein|nee){_GAP}ich (?:meinte|meine|sprach von|wollte\b(?![^.!?]*\b(?:fragen|wissen|sagen)\b)"
        r"|(?:hab|habe|hatte)\b[^.!?]{0,60}\b(?:gemeint|gesagt|gefragt|gebeten)\b)",
        r"ich meinte\b(?! (?:nur|es|damit)\b)",
        rf"(?:das|dies|es|(?:die|deine|ihre) antwort|das ergebnis) (?:ist|war){_DE_SO} (?:falsch|verkehrt|nicht (?:ganz )?"
        r"(?:richtig|korrekt|(?:der|die|das) richtige|das,? was|was|so gemeint))\b(?!,? (?:dass|zu|wenn|von|für|bei|mit)\b)",
        rf"(?:das|dies) stimmt{_DE_SO} nicht\b(?! mit)",
        rf"(?:stimmt nicht|falsch(?:e antwort)?){_END}",
        r"(?:du hast|sie haben|da hast du|da haben sie) (?:mich |das |es |etwas |da )+(?:wohl |leider )?"
        r"(?:falsch verstanden|missverstanden|vergessen)\b",
        r"so (?:war|ist|hab|habe|hatte)(?: ich)?(?: das| es)? nicht (?:gemeint|gewollt|richtig)\b",
        rf"(?:das|es) (?:funktioniert|klappt|läuft){_DE_SO} nicht\b(?! (?:bei|mit|am|für|an)\b)",
        r")",
    ),
    "fr": (
        rf"(?:(?:non|hmm|ah|oh|ok|désolée?|pardon|mais|merci){_GAP}(?:mais )?)*?(?:",
        rf"non{_GAP}je (?:voulais (?!savoir|demander|juste)|parlais|parle de|veux dire)\b",
        r"je voulais dire\b(?! (?:merci|que je)\b)",
        rf"(?:c'est|c'était){_FR_SO} (?:faux|incorrect|erroné|pas (?:ça|cela|juste|correct|bon|exact|ce que))\b"
        r"(?! (?:de|pour|si|quand)\b)",
        rf"(?:ce|ça) (?:n'est|n'était){_FR_SO} (?:toujours )?pas(?: du tout)? (?:ça|cela|juste|correct|exact|vrai|ce que)\b",
        r"(?:vous (?:m')?avez|tu (?:m')?as) mal compris\b",
        r"(?:vous vous êtes|vous vous|tu t'es|tu te) tromp\w+",
        r"(?:ça|cela) ne (?:marche|fonctionne) (?:toujours )?pas\b(?! (?:pour|avec|sur|chez)\b)",
        rf"faux{_END}",
        r")",
    ),
    "es": (
        rf"(?:(?:no|hmm|ah|oh|ok|perdón|pero|gracias|lo siento){_GAP}(?:pero )?)*?(?:",
        rf"no{_GAP}(?:me refería|quise decir|quería\b(?![^.!?]*\b(?:preguntar|saber|decir)\b)|dije que no|(?:te|le) pedí|pedí|hablaba)\b",
        r"(?:me refería a|quise decir)",
        rf"(?:eso|esto|la respuesta|el resultado){_ES_SO} (?:está mal|es incorrect[oa]|es fals[oa]|no está bien"
        r"|no es (?:correct[oa]|cierto|así|lo que|eso))\b(?! (?:que|de|para|si)\b)",
        r"no es lo que (?:pedí|quería|dije|te pedí|le pedí)\b",
        rf"(?:incorrecto|equivocado|está mal){_END}",
        r"(?:te|se) (?:equivocaste|equivocó|has equivocado|ha equivocado|equivocas|equivoca)\b",
        r"no me (?:entendiste|has entendido|ha entendido|entendió)\b",
        r"(?:eso |esto )?(?:sigue sin funcionar|(?:todavía|aún) no funciona|no (?:funcionó|ha funcionado))\b",
        r")",
    ),
    "zh": (
        r"(?:(?:嗯|唉|抱歉|谢谢|但是?|不过)[,。.!\s]*)*(?:",
        r"(?:不对|不是的|错了|答错了)(?=[,。.!\s你您我]|$)",
        r"(?:你|您)(?:理解|搞|弄|说|算|答|看)错了",
        r"不是(?:这个|那个|这样的?)(?=[,。.!\s]|$)",
        r"(?:不是?|不对)[,\s]*我(?:说|指|要|问|想要)的(?:是|不是)",
        r"我(?:说|指|问)的(?:是|不是)",
        r"我的意思(?:是|不是)",
        r"(?:这|那)?(?:个|样)?(?:不是我想?(?:要|问|说)的|不对|是错的|还是不对|还是不行|还是错的)(?=[,。.!\s]|$)",
        r")",
    ),
    "ja": (
        r"(?:(?:いや|いえ|いいえ|うーん|すみません)[、,。\s]*)*(?:",
        r"(?:(?:それ|これ|その答え|答え)[はが])?(?:違います|違うよ|違う(?=[、。!\s]|$)|間違ってい?(?:ます|る)|間違いです"
        r"|正しくない|正しくありません)",
        r"そう(?:じゃ|では)な[くい]",
        r"(?:(?:私|僕)が)?(?:言った|言いたかった|頼んだ|聞いた|欲しかった)のは",
        r"まだ(?:動きません|動かない|直っていません)",
        r")",
    ),
}
"""By language: what may stand before, then what corrects."""

_THANKS = {
    "en": (
        r"thanks|thank you|thx|tysm|ty|cheers|much appreciated|many thanks",
        r"so much|a lot|a million|very much|again|for (?:(?:your|the|all|that|this|being so) )*(?:(?:quick|fast|great|kind|prompt) )*"
        r"(?:help|helping|answer|reply|support|explanation|info|information|everything|(?:sorting|fixing) [^.,!]{1,30})",
        r"(?:that|this|it)(?:'s| is| was)? ?(?:worked|works|helped(?: a lot)?|did the trick|solved it|fixed it"
        r"|(?:really |very )?(?:great|perfect|helpful)|(?:exactly|just) (?:right|what (?:i|we) (?:needed|wanted|was looking for)))"
        r"(?: now)?|works(?: now)?|perfect|awesome|great job|well done|you're the best",
        r"great|ok|okay|ah|oh|cool|nice|wow|yes|yep|super|excellent|wonderful|brilliant|amazing|got it",
    ),
    "de": (
        r"danke|dankeschön|(?:vielen|besten|herzlichen|tausend) dank",
        r"dir|euch|ihnen|schön|sehr|vielmals|für (?:die|deine|ihre|eure) (?:(?:schnelle|gute|tolle) )?"
        r"(?:hilfe|antwort|unterstützung|auskunft)",
        r"(?:(?:das|es|jetzt) )*(?:hat (?:geklappt|geholfen|funktioniert)|klappt|funktioniert|war (?:genau )?(?:richtig|perfekt))"
        r"(?: jetzt)?|perfekt|genau das (?:wollte|brauchte) ich",
        r"super|prima|toll|top|klasse|ok|okay|gut|alles klar|ja|wunderbar|ah|oh",
    ),
    "fr": (
        r"merci|mille mercis",
        r"beaucoup|bien|infiniment|encore|à (?:vous|toi)|pour (?:votre|ton|ta|l'|la|le|tout) ?(?:aide|réponse|explication)?",
        r"(?:c'est|c'était) (?:parfait|super|génial|exactement ça)|(?:ça|cela) (?:marche|fonctionne)(?: maintenant)?|parfait"
        r"|ça a (?:marché|fonctionné)",
        r"super|génial|ok|top|d'accord|excellent|très bien|ah|oh|oui",
    ),
    "es": (
        r"(?:muchas |mil |muchísimas )?gracias",
        r"por (?:la|tu|su|todo)(?: (?:ayuda|respuesta|información))?",
        r"(?:ya |ahora )?(?:funcionó|funciona|ha funcionado)|(?:está |es )?perfecto|justo lo que necesitaba",
        r"genial|ok|vale|estupendo|excelente|super|sí|ah|oh|listo",
    ),
    "zh": (
        r"(?:非常|十分|真是)?(?:谢谢|多谢|感谢|谢了|辛苦了)",
        r"你的帮助|您的帮助|你们?|您|啦|了",
        r"太好了|太棒了|解决了|可以了|成功了|完美|正是我想?要的",
        r"好的?|明白了|嗯",
    ),
    "ja": (
        r"(?:本当に|どうも)?(?:ありがとう|有難う|感謝します|助かりました)",
        r"ございます|ございました",
        r"完璧(?:です)?|できました|解決しました|うまくいきました",
        r"はい|なるほど|素晴らしい(?:です)?",
    ),
}
"""By language: words that thank, what may follow them, words that praise, and what may stand beside these.

A message thanks if it says nothing else: what else there is may be a reservation, or a wish of another kind.
"""


def _grateful(thank: str, more: str, praise: str, beside: str) -> str:
    said = rf"(?:{thank})(?:\s*(?:{more}))*|{praise}"
    return rf"(?:(?:{beside}){_LOOSE})*(?:{said})(?:{_LOOSE}(?:{said}|{beside}))*[\W_]*$"


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What corrects and what thanks; made on first use, which takes tens of milliseconds."""
    corrections = (first + "|".join(rest) + ")" for first, *rest, _ in _CORRECTIONS.values())
    thanks = (_grateful(*words) for words in _THANKS.values())
    return re.compile("|".join(corrections)), re.compile("|".join(thanks))


_STOP = re.compile(r"[.!?。]")
_ASKING = ("吗", "呢", "么", "か", "の")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "´": "'"})


def verdict(message: str) -> Verdict:
    """What a user's message says of the answer before it; empty for nothing that is sure."""
    text = _folded(message[: HEAD + 1])
    correction, thanks = _patterns()
    if (found := correction.match(text)) is not None:
        return "" if _asks(text, found.end()) else "correction"
    if len(message) <= SHORT and "?" not in text and thanks.match(text) is not None:
        return "thanks"
    return ""


def _folded(message: str) -> str:
    """In one case, with one form of each character, without marks before the first word."""
    message = message.replace("`", "'")
    if not message.isascii():
        message = unicodedata.normalize("NFKC", message).translate(_QUOTES)
    return " ".join(message.casefold().split()).lstrip("¡¿!.,- ")


def _asks(text: str, start: int) -> bool:
    """Whether the sentence that goes on here is a question."""
    stop = _STOP.search(text, start)
    sentence = text if stop is None else text[: stop.start()]
    return (stop is not None and stop.group() == "?") or sentence.endswith(_ASKING)
