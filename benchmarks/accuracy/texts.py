"""What is said in the calls: six languages, from which a seed picks and joins.

The sentences are plain telephone talk with names, numbers and dates in it, for these are what
encoders cut most unevenly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Language:
    """Material of one language.

    Attributes:
        code: As speech recognition is told.
        joint: Between two sentences.
        greeting: What the agent says first.
        questions: What callers ask; none is part of another.
        sentences: What answers are made of.
    """

    code: str
    joint: str
    greeting: str
    questions: tuple[str, ...]
    sentences: tuple[str, ...]

    def answer(self, chance: random.Random, sentence_count: int) -> str:
        """An answer of so many sentences, all different."""
        return self.joint.join(chance.sample(self.sentences, sentence_count))

    def manual(self, chance: random.Random, sentence_count: int) -> str:
        """Instructions of any length: the sentences again and again, each with a number."""
        return self.joint.join(
            f"{number}. {chance.choice(self.sentences)}" for number in range(1, sentence_count + 1)
        )


LANGUAGES: Final = {
    "en": Language(
        "en-US",
        " ",
        "Good evening, this is Greenfield Travel, my name is Alex. How can I help you tonight?",
        (
            "Can you tell me whether my booking for Lisbon is confirmed?",
            "What happens if I have to cancel the hotel?",
            "I would like to change the name on the second ticket.",
            "Is breakfast included, and at what time is it served?",
            "How do I get from the airport to the old town?",
            "Could you send me the invoice once more, please?",
            "My daughter is allergic to nuts, who do I tell?",
            "Are there any cheaper flights in the second week of May?",
        ),
        (
            "Your booking number is QF7-2291, and it was confirmed this morning at 9:42.",
            "If you cancel before the 14th, you will get back everything except the service fee.",
            "I have just sent the invoice to the address that we have on file for you.",
            "The airport bus leaves every twenty minutes and costs about €4.50 one way.",
            "Unfortunately the earlier flight is fully booked, but I can put you on the list.",
            "Breakfast is served between half past six and ten, on Sundays until eleven.",
            "For an unaccompanied child the airline needs a signed form and a photograph.",
            "Let me check that for you; it usually takes only a moment.",
            "The room overlooks the courtyard, so it should be quiet even on weekends.",
            "There is a surcharge of 35 dollars for each additional suitcase over 23 kilograms.",
            "Would you like me to reserve two seats next to each other by the window?",
            "You don't need a visa, although your passport must be valid for six more months.",
            "I'm sorry about the inconvenience, that shouldn't have happened.",
            "Our colleagues in Porto speak English, Portuguese and a little French.",
            "Please keep the confirmation, because the driver is going to ask for it.",
            "All prices include taxes, and nothing will be charged before you agree to it.",
        ),
    ),
    "de": Language(
        "de",
        " ",
        "Guten Tag, Praxis Doktor Lindenmüller, Sie sprechen mit Anna. Was kann ich für Sie tun?",
        (
            "Ich hätte gern einen Termin in der nächsten Woche.",
            "Kann ich das Rezept auch am Nachmittag abholen?",
            "Muss ich für die Blutabnahme nüchtern sein?",
            "Wie lange gilt meine Überweisung noch?",
            "Übernimmt die Krankenkasse diese Untersuchung?",
            "Mein Sohn hat seit gestern hohes Fieber, was soll ich tun?",
            "Haben Sie am Freitag vor Pfingsten geöffnet?",
            "Können Sie mir die Laborwerte zuschicken?",
        ),
        (
            "Am Donnerstag, dem 18. Juni, hätte ich um 10:45 Uhr noch etwas frei.",
            "Bitte bringen Sie Ihre Versichertenkarte und den letzten Arztbrief mit.",
            "Für die Blutabnahme sollten Sie nüchtern kommen, Wasser dürfen Sie trinken.",
            "Das Rezept liegt ab 15 Uhr an der Anmeldung für Sie bereit.",
            "Die Kosten von 27,50 Euro übernimmt Ihre Krankenkasse leider nicht.",
            "Bei hohem Fieber wenden Sie sich außerhalb der Sprechzeiten an die 116117.",
            "Ihre Überweisung gilt bis zum Ende des Quartals, also bis zum 30. September.",
            "Frau Doktor Lindenmüller ruft Sie nach der Nachmittagssprechstunde zurück.",
            "Wir brauchen dafür eine Einverständniserklärung beider Erziehungsberechtigten.",
            "Die Grippeschutzimpfung dauert keine fünf Minuten und ist gut verträglich.",
            "Es tut mir leid, dass Sie so lange in der Warteschleife waren.",
            "Möchten Sie lieber vormittags oder lieber am späten Nachmittag kommen?",
            "Die Laborergebnisse sind meistens nach zwei bis drei Werktagen da.",
            "Während der Umbauarbeiten finden Sie den Eingang im Hof, gleich neben der Apotheke.",
        ),
    ),
    "es": Language(
        "es",
        " ",
        "Buenas tardes, le atiende Lucía de Energía del Sur. ¿En qué puedo ayudarle?",
        (
            "No entiendo por qué la factura de este mes es tan alta.",
            "Quisiera cambiar la cuenta bancaria del recibo.",
            "¿Cuándo vendrá el técnico a revisar el contador?",
            "Me he mudado y necesito dar de alta la luz.",
            "¿Tienen alguna tarifa más barata por la noche?",
            "¿Puedo pagar en dos plazos sin intereses?",
            "Se fue la luz en todo el edificio hace una hora.",
            "¿Qué documentos necesito para el cambio de titular?",
        ),
        (
            "La factura de octubre asciende a 84,37 euros, impuestos incluidos.",
            "El técnico pasará el miércoles entre las nueve y las once de la mañana.",
            "Con la tarifa nocturna usted ahorraría aproximadamente un veinte por ciento.",
            "Para el cambio de titular necesitamos una copia del documento de identidad.",
            "Ya he registrado la avería con el número 55-10482, disculpe las molestias.",
            "Puede pagarla en dos plazos, sin intereses, hasta el día veintiocho.",
            "Según la última lectura, su consumo aumentó porque estimamos el mes anterior.",
            "¿Me confirma, por favor, la dirección y el código postal del suministro?",
            "Le enviaré un mensaje con el enlace en cuanto terminemos esta llamada.",
            "La instalación es gratuita si contrata también el mantenimiento anual.",
            "Nuestros compañeros están trabajando para restablecer el servicio cuanto antes.",
            "No se preocupe, no se le cobrará nada hasta que usted lo acepte.",
            "El alta tarda entre tres y cinco días laborables desde la inspección.",
            "También podría beneficiarse del bono social, si cumple los requisitos.",
        ),
    ),
    "zh": Language(
        "zh",
        "",
        "您好，这里是东方酒店预订中心，我是小林，请问有什么可以帮您？",
        (
            "我想订下周五晚上的双人房。",
            "请问早餐是几点开始的？",
            "我能把入住日期改到二十号吗？",
            "从机场到酒店要多长时间？",
            "发票可以开公司的名字吗？",
            "房间里可以加一张小床吗？",
            "取消预订要收手续费吗？",
            "附近有没有可以停车的地方？",
        ),
        (
            "好的，我已经为您查到，下周五还有三间双人房，每晚六百八十元。",
            "早餐从早上六点半开始，到十点结束，周末延长半个小时。",
            "如果您在入住前四十八小时取消，我们不收任何费用。",
            "从机场坐地铁大约需要五十分钟，打车的话要看路上的情况。",
            "发票可以开公司抬头，请您告诉我公司的全称和税号。",
            "您的预订号码是A3057，确认短信马上会发到您的手机上。",
            "加床每晚一百五十元，十二岁以下的儿童可以免费使用早餐。",
            "酒店地下有停车场，住店客人每天只需要三十元。",
            "不好意思，让您久等了，我再帮您确认一下。",
            "请问您的航班几点到达？我们可以安排专车接您。",
            "房间在十八楼，朝南，晚上可以看到江边的夜景。",
            "入住的时候请带上身份证，押金是五百元，退房时退还。",
            "健身房和游泳池从早上七点开放到晚上十点。",
            "如果还有其他问题，您可以随时打这个电话。",
        ),
    ),
    "ja": Language(
        "ja",
        "",
        "お電話ありがとうございます。さくら図書館の田中でございます。ご用件をどうぞ。",
        (
            "借りている本の返却日を延ばせますか。",
            "予約した本はもう届いていますか。",
            "日曜日は何時まで開いていますか。",
            "利用カードをなくしてしまいました。",
            "子ども向けの読み聞かせは予約が必要ですか。",
            "会議室を来週の木曜日に借りたいのですが。",
            "雑誌のコピーは一枚いくらですか。",
            "駐車場は何台ぐらい止められますか。",
        ),
        (
            "返却日は六月三十日まで延長いたしましたので、ご安心ください。",
            "ご予約の三冊のうち、二冊はすでに受付カウンターに届いております。",
            "日曜日は午前九時から午後五時まで開館しております。",
            "カードの再発行には二百円と、ご本人を確認できる書類が必要です。",
            "読み聞かせは毎週土曜日の十時半からで、ご予約は要りません。",
            "会議室は十名様までご利用いただけ、一時間あたり八百円です。",
            "コピーは白黒が十円、カラーが五十円でございます。",
            "少々お待ちください、ただいまお調べいたします。",
            "駐車場には二十四台まで止められますが、午後は混み合います。",
            "お電話番号は090の次に8812、最後が4476でよろしいでしょうか。",
            "申し訳ございません、その本はただいま貸し出し中でございます。",
            "メールでのお知らせをご希望でしたら、アドレスをお願いいたします。",
            "パソコンは一回六十分まで、続けて二回ご利用いただけます。",
            "ほかにもご不明な点がございましたら、いつでもお電話ください。",
        ),
    ),
    "ar": Language(
        "ar",
        " ",
        "مرحبًا بك في بنك الواحة، معك سارة من خدمة العملاء. كيف أستطيع أن أساعدك اليوم؟",
        (
            "أريد أن أعرف رصيد حسابي الجاري.",
            "لماذا رُفضت بطاقتي في المتجر صباح اليوم؟",
            "كم يومًا تستغرق الحوالة إلى الخارج؟",
            "أود فتح حساب توفير لابنتي.",
            "ما هي رسوم السحب من صراف بنك آخر؟",
            "هل يمكنني تأجيل قسط القرض شهرًا واحدًا؟",
            "لم تصلني رسالة التأكيد على هاتفي.",
            "متى يفتح الفرع في شارع الملك؟",
        ),
        (
            "رصيد حسابك الآن ألف ومئتان وخمسون دينارًا، وآخر حركة كانت أمس.",
            "رُفضت البطاقة لأن تاريخ صلاحيتها انتهى في نهاية الشهر الماضي.",
            "تستغرق الحوالة من يومين إلى ثلاثة أيام عمل، ورسومها 15 دينارًا.",
            "يمكنك تأجيل القسط مرة واحدة في السنة دون أي غرامة.",
            "نحتاج إلى صورة من الهوية وشهادة الميلاد وتوقيع ولي الأمر.",
            "يفتح الفرع من الثامنة والنصف صباحًا حتى الثالثة بعد الظهر.",
            "أرسلت إليك رمز التأكيد مرة أخرى، أرجو أن تتحقق من هاتفك.",
            "نعتذر عن هذا التأخير، وسنعالج طلبك في أقرب وقت ممكن.",
            "هل ترغب في أن نرسل البطاقة الجديدة إلى عنوان المنزل؟",
            "لا توجد رسوم على السحب من أجهزتنا، أما البنوك الأخرى فرسمها ديناران.",
            "رقم المعاملة هو 774-0931، احتفظ به من فضلك حتى تكتمل.",
            "سيتصل بك موظف الفرع غدًا بين العاشرة والثانية عشرة.",
            "هذا المنتج متوافق مع أحكام الشريعة، ونسبة العائد تُعلن كل ثلاثة أشهر.",
            "هل هناك شيء آخر أستطيع أن أقدمه لك؟",
        ),
    ),
}

ORDER_SCHEMA: Final[dict[str, Any]] = {
    "name": "save_order",
    "description": "Save all that was agreed on, with all its items, before it is confirmed.",
    "parameters": {
        "type": "object",
        "properties": {
            "customer": {
                "type": "object",
                "description": "Who orders.",
                "properties": {
                    "name": {"type": "string"},
                    "phone": {"type": "string", "description": "E.164"},
                    "email": {"type": "string"},
                },
                "required": ["name", "phone", "email"],
                "additionalProperties": False,
            },
            "items": {
                "type": "array",
                "description": "One per article.",
                "items": {
                    "type": "object",
                    "properties": {
                        "sku": {"type": "string"},
                        "quantity": {"type": "integer"},
                        "unit_price_cents": {"type": "integer"},
                        "options": {"type": "array", "items": {"type": "string"}},
                    },
                    "required": ["sku", "quantity", "unit_price_cents", "options"],
                    "additionalProperties": False,
                },
            },
            "deliver_at": {"type": "string", "description": "ISO 8601, local time."},
            "priority": {"type": "string", "enum": ["normal", "express", "overnight"]},
        },
        "required": ["customer", "items", "deliver_at", "priority"],
        "additionalProperties": False,
    },
}
LOOKUP_SCHEMA: Final[dict[str, Any]] = {
    "name": "look_up",
    "description": "Look up a customer, an order or an invoice by its number.",
    "parameters": {
        "type": "object",
        "properties": {"kind": {"type": "string"}, "number": {"type": "string"}},
        "required": ["kind", "number"],
        "additionalProperties": False,
    },
}


def order(chance: random.Random, item_count: int) -> dict[str, Any]:
    """Arguments of `save_order`: about 40 tokens an item."""
    options = ("gift_wrap", "no_onions", "left-handed", "size:XL", "colour:#1f6feb", "engraving")
    return {
        "customer": {
            "name": chance.choice(("Ines Baptista", "Jürgen Groß", "María Núñez", "王小明")),
            "phone": f"+{chance.randrange(10**10, 10**11)}",
            "email": f"user{chance.randrange(1000)}@example.org",
        },
        "items": [
            {
                "sku": f"{chance.choice(('AX', 'ZETA', 'PR0'))}-{chance.randrange(10**5):05d}",
                "quantity": chance.randrange(1, 12),
                "unit_price_cents": chance.randrange(199, 99_999),
                "options": chance.sample(options, chance.randrange(3)),
            }
            for _ in range(item_count)
        ],
        "deliver_at": f"2026-12-{chance.randrange(1, 28):02d}T{chance.randrange(8, 20):02d}:30:00",
        "priority": chance.choice(("normal", "express", "overnight")),
    }


def lookup(chance: random.Random) -> dict[str, Any]:
    """Arguments of `look_up`."""
    return {
        "kind": chance.choice(("customer", "order", "invoice")),
        "number": f"{chance.choice('ABCK')}{chance.randrange(10**7):07d}",
    }
