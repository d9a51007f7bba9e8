"""Everything in the world that is neither a person nor a place on the map: work, hobbies, things, weather."""

from __future__ import annotations

# English/Russian nominative/Russian instrumental/Chinese
JOBS = """
engineer/инженер/инженером/工程师; teacher/учитель/учителем/教师; doctor/врач/врачом/医生;
architect/архитектор/архитектором/建筑师; lawyer/юрист/юристом/律师; journalist/журналист/журналистом/记者;
baker/пекарь/пекарем/面包师; carpenter/плотник/плотником/木匠; chemist/химик/химиком/化学家;
physicist/физик/физиком/物理学家; painter/художник/художником/画家; photographer/фотограф/фотографом/摄影师;
librarian/библиотекарь/библиотекарем/图书管理员; accountant/бухгалтер/бухгалтером/会计;
translator/переводчик/переводчиком/翻译; programmer/программист/программистом/程序员; pilot/пилот/пилотом/飞行员;
gardener/садовник/садовником/园丁; cook/повар/поваром/厨师; tailor/портной/портным/裁缝;
electrician/электрик/электриком/电工; geologist/геолог/геологом/地质学家; historian/историк/историком/历史学家;
musician/музыкант/музыкантом/音乐家; economist/экономист/экономистом/经济学家; designer/дизайнер/дизайнером/设计师;
mechanic/механик/механиком/机械师; dentist/стоматолог/стоматологом/牙医; biologist/биолог/биологом/生物学家;
editor/редактор/редактором/编辑; driver/водитель/водителем/司机; florist/флорист/флористом/花艺师;
astronomer/астроном/астрономом/天文学家; sculptor/скульптор/скульптором/雕塑家
"""

# English gerund/Russian infinitive/Chinese verb phrase
HOBBIES = """
playing chess/играть в шахматы/下国际象棋; reading novels/читать романы/读小说; collecting stamps/собирать марки/集邮;
growing roses/выращивать розы/种玫瑰; painting landscapes/рисовать пейзажи/画风景画;
playing the violin/играть на скрипке/拉小提琴; riding a bicycle/кататься на велосипеде/骑自行车;
watching birds/наблюдать за птицами/观鸟; baking bread/печь хлеб/烤面包;
swimming in the lake/плавать в озере/在湖里游泳; hiking in the mountains/ходить в горы/爬山;
singing in a choir/петь в хоре/参加合唱; repairing clocks/чинить часы/修钟表; writing poems/писать стихи/写诗;
cooking soup/варить суп/煲汤; learning languages/учить языки/学外语; playing football/играть в футбол/踢足球;
taking photographs/фотографировать/拍照片; fishing/рыбачить/钓鱼; skiing/кататься на лыжах/滑雪;
building model ships/мастерить модели кораблей/做船模; solving crosswords/разгадывать кроссворды/填字谜;
dancing the tango/танцевать танго/跳探戈; playing the piano/играть на пианино/弹钢琴
"""

# A company is named by one word of each list; all Russian ones are masculine.
COMPANY_FIRST = """
Silver/Серебряный/银; Golden/Золотой/金; Northern/Северный/北方; Southern/Южный/南方; Blue/Синий/蓝; Red/Красный/红;
Green/Зелёный/绿; White/Белый/白; Quiet/Тихий/静; Bright/Яркий/明; Old/Старый/老; New/Новый/新; Stone/Каменный/石;
Crystal/Хрустальный/水晶; Winged/Крылатый/飞; First/Первый/第一
"""
COMPANY_SECOND = """
Bridge/мост/桥; Wind/ветер/风; Garden/сад/园; Lion/лев/狮; Falcon/сокол/隼; Harbour/порт/港; Forest/лес/林;
Light/свет/光; Road/путь/路; Island/остров/岛; Peak/пик/峰; Bear/медведь/熊; House/дом/屋; Ship/корабль/船;
Lighthouse/маяк/灯塔; Key/ключ/钥匙; Oak/дуб/橡树; Dolphin/дельфин/海豚
"""

# English preposition and noun/Russian direction/Russian place/Chinese
SPOTS = """
at the market/на рынок/на рынке/市场; at the library/в библиотеку/в библиотеке/图书馆;
at the station/на вокзал/на вокзале/火车站; in the park/в парк/в парке/公园; at the museum/в музей/в музее/博物馆;
at the post office/на почту/на почте/邮局; at the bakery/в пекарню/в пекарне/面包店;
at the harbour/в порт/в порту/港口; at the theatre/в театр/в театре/剧院; in the garden/в сад/в саду/花园;
at the school/в школу/в школе/学校; at the café/в кафе/в кафе/咖啡馆; on the square/на площадь/на площади/广场;
at the hospital/в больницу/в больнице/医院; at the bookshop/в книжный магазин/в книжном магазине/书店;
at the workshop/в мастерскую/в мастерской/作坊
"""

# English/Russian nominative/Russian accusative/Chinese measure word/Chinese
THINGS = """
umbrella/зонт/зонт/一把/雨伞; letter/письмо/письмо/一封/信; book/книга/книгу/一本/书; lamp/лампа/лампу/一盏/台灯;
map/карта/карту/一张/地图; camera/фотоаппарат/фотоаппарат/一台/照相机; scarf/шарф/шарф/一条/围巾;
basket/корзина/корзину/一个/篮子; guitar/гитара/гитару/一把/吉他; hat/шляпа/шляпу/一顶/帽子;
parcel/посылка/посылку/一个/包裹; key/ключ/ключ/一把/钥匙; ring/кольцо/кольцо/一枚/戒指;
notebook/тетрадь/тетрадь/一个/笔记本; painting/картина/картину/一幅/油画; teapot/чайник/чайник/一把/茶壶;
suitcase/чемодан/чемодан/一个/手提箱; coin/монета/монету/一枚/硬币; ticket/билет/билет/一张/车票;
mirror/зеркало/зеркало/一面/镜子; candle/свеча/свечу/一根/蜡烛; pen/ручка/ручку/一支/钢笔;
postcard/открытка/открытку/一张/明信片; knife/нож/нож/一把/小刀
"""

# English/Russian direction/Russian place/Chinese
CONTAINERS = """
box/в коробку/в коробке/盒子; drawer/в ящик стола/в ящике стола/抽屉; bag/в сумку/в сумке/袋子;
cupboard/в шкаф/в шкафу/柜子; pocket/в карман/в кармане/口袋; vase/в вазу/в вазе/花瓶; chest/в сундук/в сундуке/木箱;
safe/в сейф/в сейфе/保险箱
"""

# English/Russian accusative/Chinese
FOODS = """
some bread/хлеб/面包; two apples/два яблока/两个苹果; some cheese/сыр/奶酪; a cake/торт/一块蛋糕;
some grapes/виноград/葡萄; a jar of honey/банку меда/一罐蜂蜜; three oranges/три апельсина/三个橙子;
some tea/чай/茶叶; some nuts/орехи/坚果; a bottle of milk/бутылку молока/一瓶牛奶
"""

# after English "it was"/Russian/Chinese
WEATHER = """
raining/шёл дождь/下着雨; snowing/шёл снег/下着雪; warm and sunny/было тепло и солнечно/阳光明媚;
windy/было ветрено/刮着大风; foggy/стоял туман/大雾弥漫; cold/было холодно/天气很冷; hot/было жарко/天气炎热;
already dark/было уже темно/天已经黑了
"""

WEEKDAYS = """
on Monday/в понедельник/星期一; on Tuesday/во вторник/星期二; on Wednesday/в среду/星期三;
on Thursday/в четверг/星期四; on Friday/в пятницу/星期五; on Saturday/в субботу/星期六; on Sunday/в воскресенье/星期天
"""

MONTHS = (
    ("January", "января"), ("February", "февраля"), ("March", "марта"), ("April", "апреля"), ("May", "мая"),
    ("June", "июня"), ("July", "июля"), ("August", "августа"), ("September", "сентября"), ("October", "октября"),
    ("November", "ноября"), ("December", "декабря"),
)  # fmt: skip


def rows(table: str) -> list[list[str]]:
    """The entries of a table above."""
    return [entry.strip().split("/") for entry in table.replace("\n", " ").split(";")]
