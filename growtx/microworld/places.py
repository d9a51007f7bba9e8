"""Countries and their cities, the capital first. All of this is true of the real world."""

from __future__ import annotations

from dataclasses import dataclass

# country: English/Russian nominative/genitive/with preposition "in"/Chinese
#   city: the same five; where the Russian name does not change, genitive and locative are left out
_TABLE = """
France/Франция/Франции/во Франции/法国
  Paris/Париж/Парижа/в Париже/巴黎; Lyon/Лион/Лиона/в Лионе/里昂; Marseille/Марсель/Марселя/в Марселе/马赛; Nice/Ницца/Ниццы/в Ницце/尼斯
Germany/Германия/Германии/в Германии/德国
  Berlin/Берлин/Берлина/в Берлине/柏林; Munich/Мюнхен/Мюнхена/в Мюнхене/慕尼黑; Hamburg/Гамбург/Гамбурга/в Гамбурге/汉堡; Dresden/Дрезден/Дрездена/в Дрездене/德累斯顿
Italy/Италия/Италии/в Италии/意大利
  Rome/Рим/Рима/в Риме/罗马; Milan/Милан/Милана/в Милане/米兰; Venice/Венеция/Венеции/в Венеции/威尼斯; Naples/Неаполь/Неаполя/в Неаполе/那不勒斯
Spain/Испания/Испании/в Испании/西班牙
  Madrid/Мадрид/Мадрида/в Мадриде/马德里; Barcelona/Барселона/Барселоны/в Барселоне/巴塞罗那; Seville/Севилья/Севильи/в Севилье/塞维利亚
Portugal/Португалия/Португалии/в Португалии/葡萄牙
  Lisbon/Лиссабон/Лиссабона/в Лиссабоне/里斯本; Porto/Порту/波尔图
the Netherlands/Нидерланды/Нидерландов/в Нидерландах/荷兰
  Amsterdam/Амстердам/Амстердама/в Амстердаме/阿姆斯特丹; Rotterdam/Роттердам/Роттердама/в Роттердаме/鹿特丹; Utrecht/Утрехт/Утрехта/в Утрехте/乌得勒支
Belgium/Бельгия/Бельгии/в Бельгии/比利时
  Brussels/Брюссель/Брюсселя/в Брюсселе/布鲁塞尔; Antwerp/Антверпен/Антверпена/в Антверпене/安特卫普; Ghent/Гент/Гента/в Генте/根特
Switzerland/Швейцария/Швейцарии/в Швейцарии/瑞士
  Bern/Берн/Берна/в Берне/伯尔尼; Zurich/Цюрих/Цюриха/в Цюрихе/苏黎世; Geneva/Женева/Женевы/в Женеве/日内瓦; Basel/Базель/Базеля/в Базеле/巴塞尔
Austria/Австрия/Австрии/в Австрии/奥地利
  Vienna/Вена/Вены/в Вене/维也纳; Salzburg/Зальцбург/Зальцбурга/в Зальцбурге/萨尔茨堡; Graz/Грац/Граца/в Граце/格拉茨
Poland/Польша/Польши/в Польше/波兰
  Warsaw/Варшава/Варшавы/в Варшаве/华沙; Krakow/Краков/Кракова/в Кракове/克拉科夫; Gdansk/Гданьск/Гданьска/в Гданьске/格但斯克
Czechia/Чехия/Чехии/в Чехии/捷克
  Prague/Прага/Праги/в Праге/布拉格; Brno/Брно/布尔诺
Hungary/Венгрия/Венгрии/в Венгрии/匈牙利
  Budapest/Будапешт/Будапешта/в Будапеште/布达佩斯; Debrecen/Дебрецен/Дебрецена/в Дебрецене/德布勒森
Greece/Греция/Греции/в Греции/希腊
  Athens/Афины/Афин/в Афинах/雅典; Thessaloniki/Салоники/Салоник/в Салониках/塞萨洛尼基
Sweden/Швеция/Швеции/в Швеции/瑞典
  Stockholm/Стокгольм/Стокгольма/в Стокгольме/斯德哥尔摩; Gothenburg/Гётеборг/Гётеборга/в Гётеборге/哥德堡; Malmo/Мальмё/马尔默
Norway/Норвегия/Норвегии/в Норвегии/挪威
  Oslo/Осло/奥斯陆; Bergen/Берген/Бергена/в Бергене/卑尔根
Finland/Финляндия/Финляндии/в Финляндии/芬兰
  Helsinki/Хельсинки/赫尔辛基; Turku/Турку/图尔库
Denmark/Дания/Дании/в Дании/丹麦
  Copenhagen/Копенгаген/Копенгагена/в Копенгагене/哥本哈根; Odense/Оденсе/欧登塞
the United Kingdom/Великобритания/Великобритании/в Великобритании/英国
  London/Лондон/Лондона/в Лондоне/伦敦; Manchester/Манчестер/Манчестера/в Манчестере/曼彻斯特; Edinburgh/Эдинбург/Эдинбурга/в Эдинбурге/爱丁堡; Bristol/Бристоль/Бристоля/в Бристоле/布里斯托尔
Ireland/Ирландия/Ирландии/в Ирландии/爱尔兰
  Dublin/Дублин/Дублина/в Дублине/都柏林; Cork/Корк/Корка/в Корке/科克
Russia/Россия/России/в России/俄罗斯
  Moscow/Москва/Москвы/в Москве/莫斯科; Saint Petersburg/Санкт-Петербург/Санкт-Петербурга/в Санкт-Петербурге/圣彼得堡; Kazan/Казань/Казани/в Казани/喀山; Novosibirsk/Новосибирск/Новосибирска/в Новосибирске/新西伯利亚; Samara/Самара/Самары/в Самаре/萨马拉
Kazakhstan/Казахстан/Казахстана/в Казахстане/哈萨克斯坦
  Astana/Астана/Астаны/в Астане/阿斯塔纳; Almaty/Алматы/阿拉木图
Georgia/Грузия/Грузии/в Грузии/格鲁吉亚
  Tbilisi/Тбилиси/第比利斯; Batumi/Батуми/巴统
Armenia/Армения/Армении/в Армении/亚美尼亚
  Yerevan/Ереван/Еревана/в Ереване/埃里温; Gyumri/Гюмри/久姆里
Turkey/Турция/Турции/в Турции/土耳其
  Ankara/Анкара/Анкары/в Анкаре/安卡拉; Istanbul/Стамбул/Стамбула/в Стамбуле/伊斯坦布尔; Izmir/Измир/Измира/в Измире/伊兹密尔
Egypt/Египет/Египта/в Египте/埃及
  Cairo/Каир/Каира/в Каире/开罗; Giza/Гиза/Гизы/в Гизе/吉萨
Morocco/Марокко/摩洛哥
  Rabat/Рабат/Рабата/в Рабате/拉巴特; Casablanca/Касабланка/Касабланки/в Касабланке/卡萨布兰卡
Kenya/Кения/Кении/в Кении/肯尼亚
  Nairobi/Найроби/内罗毕; Mombasa/Момбаса/Момбасы/в Момбасе/蒙巴萨
India/Индия/Индии/в Индии/印度
  New Delhi/Нью-Дели/新德里; Mumbai/Мумбаи/孟买; Chennai/Ченнаи/金奈
China/Китай/Китая/в Китае/中国
  Beijing/Пекин/Пекина/в Пекине/北京; Shanghai/Шанхай/Шанхая/в Шанхае/上海; Guangzhou/Гуанчжоу/广州; Chengdu/Чэнду/成都; Harbin/Харбин/Харбина/в Харбине/哈尔滨; Nanjing/Нанкин/Нанкина/в Нанкине/南京
Japan/Япония/Японии/в Японии/日本
  Tokyo/Токио/东京; Osaka/Осака/Осаки/в Осаке/大阪; Kyoto/Киото/京都; Sapporo/Саппоро/札幌
Vietnam/Вьетнам/Вьетнама/во Вьетнаме/越南
  Hanoi/Ханой/Ханоя/в Ханое/河内; Hue/Хюэ/顺化
Thailand/Таиланд/Таиланда/в Таиланде/泰国
  Bangkok/Бангкок/Бангкока/в Бангкоке/曼谷; Chiang Mai/Чиангмай/Чиангмая/в Чиангмае/清迈
Mongolia/Монголия/Монголии/в Монголии/蒙古国
  Ulaanbaatar/Улан-Батор/Улан-Батора/в Улан-Баторе/乌兰巴托; Erdenet/Эрдэнэт/Эрдэнэта/в Эрдэнэте/额尔登特
Canada/Канада/Канады/в Канаде/加拿大
  Ottawa/Оттава/Оттавы/в Оттаве/渥太华; Toronto/Торонто/多伦多; Montreal/Монреаль/Монреаля/в Монреале/蒙特利尔; Vancouver/Ванкувер/Ванкувера/в Ванкувере/温哥华
the United States/США/美国
  Washington/Вашингтон/Вашингтона/в Вашингтоне/华盛顿; Chicago/Чикаго/芝加哥; Boston/Бостон/Бостона/в Бостоне/波士顿; Seattle/Сиэтл/Сиэтла/в Сиэтле/西雅图
Mexico/Мексика/Мексики/в Мексике/墨西哥
  Mexico City/Мехико/墨西哥城; Puebla/Пуэбла/Пуэблы/в Пуэбле/普埃布拉
Argentina/Аргентина/Аргентины/в Аргентине/阿根廷
  Buenos Aires/Буэнос-Айрес/Буэнос-Айреса/в Буэнос-Айресе/布宜诺斯艾利斯; Rosario/Росарио/罗萨里奥
Chile/Чили/智利
  Santiago/Сантьяго/圣地亚哥; Valparaiso/Вальпараисо/瓦尔帕莱索
Peru/Перу/秘鲁
  Lima/Лима/Лимы/в Лиме/利马; Arequipa/Арекипа/Арекипы/в Арекипе/阿雷基帕
Colombia/Колумбия/Колумбии/в Колумбии/哥伦比亚
  Bogota/Богота/Боготы/в Боготе/波哥大; Medellin/Медельин/Медельина/в Медельине/麦德林
Australia/Австралия/Австралии/в Австралии/澳大利亚
  Canberra/Канберра/Канберры/в Канберре/堪培拉; Sydney/Сидней/Сиднея/в Сиднее/悉尼; Melbourne/Мельбурн/Мельбурна/в Мельбурне/墨尔本
"""  # noqa: E501


@dataclass(frozen=True)
class Place:
    """A city or country: its names, and of which country it is (its own number for a country)."""

    en: str
    ru: str
    ru_gen: str
    ru_where: str
    zh: str
    country: int


def _place(entry: str, country: int) -> Place:
    parts = entry.strip().split("/")
    if len(parts) == 3:
        english, russian, chinese = parts
        return Place(english, russian, russian, f"в {russian}", chinese, country)
    english, russian, genitive, where, chinese = parts
    return Place(english, russian, genitive, where, chinese, country)


def _read() -> tuple[list[Place], list[Place], list[int]]:
    countries: list[Place] = []
    cities: list[Place] = []
    capitals: list[int] = []
    for line in _TABLE.strip().splitlines():
        if line.startswith("  "):
            capitals.append(len(cities))
            cities.extend(_place(entry, len(countries) - 1) for entry in line.split(";"))
        else:
            countries.append(_place(line, len(countries)))
    return countries, cities, capitals


COUNTRIES, CITIES, CAPITALS = _read()
